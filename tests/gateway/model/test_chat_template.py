"""Conversations are rendered as `apply_chat_template` renders them; what a template cannot show is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gateway.model.chat_template import Conversation
from gateway.model.tokenizer import ModelTokenizer
from paceline.errors import FailedPreconditionError, InvalidArgumentError
from support.tokenizers import save_kind

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for p in m['content'] %}{% if p.type == 'text' %}{{ p['text'] }}"
    "{% endif %}{% endfor %}<|end|>{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }};{% endfor %}{% endif %}{% endfor %}"
)
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content | trim }}{{ eos_token }}{% endfor %}"
)
TOOLS = (
    "{% if tools %}{{ tools | tojson(indent=1) }}{% endif %}{% for m in messages %}{% if m.tool_calls %}"
    "{% for call in m.tool_calls %}call {{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}"
    "{% elif m.role == 'tool' %}{{ m.tool_call_id }}={{ m.content }}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)
RAG = "{% for d in documents %}[{{ d.title }}] {{ d.text }}\n{% endfor %}{{ messages[-1].content }}"
THINKING = (
    "{% for m in messages %}{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content.split('</think>')[-1] }}{% endfor %}{% if enable_thinking is false %}<think></think>{% endif %}"
)
SYSTEM_FIRST = (
    "{% if messages[0].role == 'system' %}[{{ messages[0].content }}]{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}U {{ m.content }}"
    "{% elif m.role == 'assistant' %}A {{ m.content }}{% endif %}{% endfor %}"
)
LOOPS = (
    "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- if m.role == 'skip' -%}{%- continue -%}{%- endif -%}"
    "{%- set ns.n = ns.n + 1 -%}{{ ns.n }} {{ m.content }}{%- endfor -%}"
)
TRACKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
NAMED = [
    {"name": "default", "template": CHATML},
    {"name": "tool_use", "template": TOOLS},
    {"name": "rag", "template": RAG},
]

SAID: list[dict[str, Any]] = [
    {"role": "user", "content": " Hi, what is 1 < 2? "},
    {"role": "assistant", "content": "A comparison."},
    {"role": "user", "content": "And <|end|> is?"},
]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *SAID]
IN_PARTS = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
CALLED = [
    SAID[0],
    {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"b": 1, "a": 2.5}}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "3.5"},
]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "minimum": 1, "a": "é"}}}
DOCUMENT = {"title": "Sums", "text": "1 + 1 = 2"}

CASES: dict[str, tuple[Any, list[dict[str, Any]], dict[str, Any]]] = {
    "chatml": (CHATML, WITH_SYSTEM, {}),
    "chatml-continued": (CHATML, SAID[:2], {"continue_final_message": True}),
    "parts": (PARTS, IN_PARTS, {}),
    "text-or-parts-text": (EITHER, SAID, {}),
    "text-or-parts-parts": (EITHER, IN_PARTS, {}),
    "strict": (STRICT, SAID, {}),
    "tools": (TOOLS, CALLED, {"tools": [TOOL]}),
    "no-tools": (TOOLS, SAID, {}),
    "documents": (RAG, SAID[:1], {"documents": [DOCUMENT]}),
    "arguments": (THINKING, SAID, {"enable_thinking": False}),
    "reasoning": (THINKING, [{"role": "user", "content": "x", "reasoning_content": "y"}], {}),
    "system-first": (SYSTEM_FIRST, WITH_SYSTEM, {}),
    "loop-controls": (LOOPS, SAID, {}),
    "tracked": (TRACKED, SAID, {}),
    "named-default": (NAMED, SAID, {}),
    "named-tools": (NAMED, CALLED, {"tools": [TOOL]}),
    "named-by-name": (NAMED, SAID[:1], {"chat_template": "rag", "documents": [DOCUMENT]}),
}


def _save(folder: Path, template: Any) -> str:
    save_kind(folder, "byte-level-with-bos")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return str(folder)


def _conversation(messages: Any, more: dict[str, Any]) -> Conversation:
    arguments = dict(more)
    own = {name: arguments.pop(name) for name in ("tools", "documents", "continue_final_message") if name in more}
    return Conversation(messages, **own, template=arguments.pop("chat_template", ""), arguments=arguments)


@pytest.mark.parametrize("case", sorted(CASES))
async def test_ids_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    template, messages, more = CASES[case]
    folder = _save(tmp_path, template)
    prompts = {} if more.get("continue_final_message") else {"add_generation_prompt": True}
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, **prompts, **more)["input_ids"]
    assert await ModelTokenizer(folder).encode_chat(_conversation(messages, more)) == expected


async def test_a_template_that_reads_parts_is_given_parts(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(_save(tmp_path, PARTS))
    text = await tokenizer.decode(await tokenizer.encode_chat(Conversation([{"role": "user", "content": "hello"}])))
    assert "hello" in text


async def test_a_template_that_reads_text_is_given_text(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(_save(tmp_path, CHATML))
    text = await tokenizer.decode(await tokenizer.encode_chat(Conversation(IN_PARTS)))
    assert "one\ntwo" in text
    assert "type" not in text


@pytest.mark.parametrize(
    ("template", "messages", "more", "field", "said"),
    [
        (STRICT, SAID[:2][::-1], {}, "messages", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", SAID, {}, "messages", "TypeError"),
        ("{{ 1 // 0 }}", SAID, {}, "messages", "ZeroDivisionError"),
        ("{{ messages.nothing.at }}", SAID, {}, "messages", "has no attribute"),
        ("{% for m in messages %}", SAID, {}, "messages", "refuses them"),
        (CHATML, [{"role": "robot", "content": "beep"}], {}, "messages[0].role", "knows no role 'robot'"),
        (SYSTEM_FIRST, [*SAID[:2], WITH_SYSTEM[0], SAID[2]], {}, "messages[2]", "leaves out what 'system' says"),
        (SYSTEM_FIRST, CALLED[:1] + CALLED[2:], {}, "messages[1]", "leaves out what 'tool' says"),
        (NAMED, SAID, {"chat_template": "other"}, "chat_template", "no template 'other'"),
        (NAMED[1:], SAID, {}, "chat_template", "must name one"),
        (CHATML, SAID, {"tokenize": True}, "template_arguments", "'tokenize' is not"),
        (CHATML, SAID, {"messages": []}, "template_arguments", "'messages' is not"),
    ],
)
async def test_what_a_template_cannot_show_is_the_callers_mistake(
    tmp_path: Path, template: Any, messages: Any, more: Any, field: str, said: str
) -> None:
    tokenizer = ModelTokenizer(_save(tmp_path, template))
    with pytest.raises(InvalidArgumentError, match=said) as refusal:
        await tokenizer.encode_chat(_conversation(messages, more))
    assert refusal.value.violations[0].field == field


async def test_a_role_that_a_template_names_is_taken(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(_save(tmp_path, CHATML + "{% if messages[0].role == 'ipython' %}!{% endif %}"))
    assert await tokenizer.encode_chat(Conversation([{"role": "ipython", "content": "42"}]))


async def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(save_kind(tmp_path, "byte-level"))
    assert not tokenizer.has_chat_template
    with pytest.raises(FailedPreconditionError, match="no chat template"):
        await tokenizer.encode_chat(Conversation(SAID))
