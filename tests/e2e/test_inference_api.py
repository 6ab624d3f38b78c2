"""Chat, text in and out, models, and the blocking client."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from tokenizers import Tokenizer

from paceline import InvalidArgumentError, SyncClient
from paceline.v1 import sampling_pb2
from support.system import System, collect, start_system


async def test_chat_renders_the_template(system: System) -> None:
    messages = [("user", "hi"), ("assistant", "yes?"), ("user", "bye")]
    prompt = "user: hi\nassistant: yes?\nuser: bye\nassistant:"
    chat = await collect(system.client.chat(messages, seed=3, max_tokens=20, ignore_eos=True))
    plain = await system.generate(prompt, seed=3, max_tokens=20, ignore_eos=True)
    assert chat.started.num_prompt_tokens == len(prompt)
    assert chat.token_ids == plain.token_ids
    assert chat.text == plain.text


async def test_chat_without_messages_is_refused(system: System) -> None:
    with pytest.raises(InvalidArgumentError):
        await collect(system.client.chat([]))


async def test_text_survives_tokenize_and_detokenize(system: System) -> None:
    text = "def f(x):\n\treturn 'naïve 😀'"
    ids = await system.client.tokenize(text)
    assert len(ids) == len(text.encode())
    assert await system.client.detokenize(ids) == text
    with pytest.raises(InvalidArgumentError):
        await system.client.detokenize([1, 999])


async def test_streamed_text_is_the_text_of_the_streamed_tokens(system: System) -> None:
    for seed in range(5):
        reply = await system.generate("x", seed=seed, max_tokens=50, temperature=1.5, ignore_eos=True)
        assert reply.text == await system.client.detokenize(reply.token_ids)


async def test_a_stop_string_over_token_borders_does_not_leak(system: System) -> None:
    whole = await system.generate("x", seed=1, max_tokens=60, ignore_eos=True)
    stop = whole.text[20:24]
    reply = await system.generate("x", seed=1, max_tokens=60, ignore_eos=True, stop=[stop])
    assert reply.text == whole.text[: whole.text.index(stop)]
    assert reply.finish_reasons == {0: 2}
    assert len(reply.token_ids) < 60


async def test_a_stop_token_ends_the_text_before_itself(system: System) -> None:
    whole = await system.generate("x", seed=1, max_tokens=60, ignore_eos=True)
    stop = whole.token_ids[20]
    end = whole.token_ids.index(stop)
    reply = await system.generate("x", seed=1, max_tokens=60, ignore_eos=True, stop_token_ids=[stop])
    assert reply.token_ids == whole.token_ids[: end + 1]
    assert reply.text == await system.client.detokenize(whole.token_ids[:end])
    assert reply.finish_reasons == {0: sampling_pb2.FINISH_REASON_STOP}


async def test_a_special_token_is_a_stop_string(target_folder: str, tmp_path: Path) -> None:
    """It is left out of the text, in which a stop string is looked for else."""
    folder = shutil.copytree(target_folder, tmp_path / "it")
    options = {"seed": 1, "max_tokens": 40, "ignore_eos": True}
    async with start_system(str(folder)) as system:
        whole = await system.generate("x", **options)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stop = tokenizer.id_to_token(whole.token_ids[20])
    tokenizer.add_special_tokens([stop])
    tokenizer.save(str(folder / "tokenizer.json"))
    async with start_system(str(folder)) as system:
        reply = await system.generate("x", **options, stop=[stop])
    assert reply.token_ids == whole.token_ids[: whole.token_ids.index(whole.token_ids[20]) + 1]
    assert reply.finish_reasons == {0: sampling_pb2.FINISH_REASON_STOP}


async def test_a_text_has_as_many_tokens_as_it_was_to_have_at_least(system: System) -> None:
    whole = await system.generate("x", seed=1, max_tokens=60, ignore_eos=True)
    first = await system.client.detokenize(whole.token_ids[:1])
    assert len((await system.generate("x", seed=1, max_tokens=60, ignore_eos=True, stop=[first])).token_ids) == 1
    stops = {"stop": [first], "stop_token_ids": whole.token_ids[10:12]}
    reply = await system.generate("x", seed=1, max_tokens=60, ignore_eos=True, min_tokens=15, **stops)
    assert len(reply.token_ids) >= 15
    assert not set(stops["stop_token_ids"]) & set(reply.token_ids[:15])
    draftless = await system.generate(
        "x", seed=1, max_tokens=60, ignore_eos=True, min_tokens=15, speculation=False, **stops
    )
    assert draftless.token_ids == reply.token_ids


async def test_bad_words_do_not_occur(system: System) -> None:
    whole = await system.generate("x", temperature=0, max_tokens=40, ignore_eos=True)
    words = [await system.client.detokenize(whole.token_ids[at : at + 2]) for at in (3, 9)]
    words = [word for word in words if "\N{REPLACEMENT CHARACTER}" not in word] or [whole.text[0]]
    reply = await system.generate("x", temperature=0, max_tokens=40, ignore_eos=True, bad_words=words)
    assert not [word for word in words if word in reply.text]
    assert len(reply.token_ids) == 40


async def test_a_conversation_is_continued_in_its_last_message(system: System) -> None:
    messages = [("user", "hi"), ("assistant", "yes")]
    chat = await collect(system.client.chat(messages, seed=3, max_tokens=9, continue_final_message=True))
    plain = await system.generate("user: hi\nassistant: yes", seed=3, max_tokens=9)
    assert chat.token_ids == plain.token_ids


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"stop_token_ids": [256]}, "sampling.stop_token_ids"),
        ({"stop_token_ids": [1] * 65}, "sampling.stop_token_ids"),
        ({"min_tokens": 9, "max_tokens": 8}, "sampling.min_tokens"),
        ({"bad_words": [""]}, "sampling.bad_words[0]"),
    ],
)
async def test_what_cannot_end_a_text_is_refused(system: System, options: Any, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        await system.generate("x", **options)
    assert [violation.field for violation in refusal.value.violations] == [field]


async def test_models_tell_of_target_and_draft(system: System) -> None:
    (model,) = await system.client.list_models()
    target = MessageToDict(model.target, preserving_proto_field_name=True)
    assert target["id"] == "tiny"
    assert target["vocab_size"] == 256
    assert target["max_context_tokens"] == 512
    assert target["architecture"] == "LlamaForCausalLM"
    assert len(target["revision_digest"]) == 64
    assert model.draft.revision_digest != model.target.revision_digest
    assert model.has_chat_template


async def test_the_blocking_client_streams_the_same(system: System) -> None:
    def run() -> list[int]:
        with SyncClient(system.gateway) as client:
            assert client.tokenize("ab") == [client.tokenize("a")[0], client.tokenize("b")[0]]
            assert client.list_models()[0].target.id == "tiny"
            events = list(client.generate("abc", seed=1, max_tokens=10, ignore_eos=True))
            next(iter(client.chat([("user", "x")], max_tokens=5)))
            return [token_id for event in events for token_id in event.delta.token_ids]

    blocking = await asyncio.to_thread(run)
    assert blocking == (await system.generate("abc", seed=1, max_tokens=10, ignore_eos=True)).token_ids


async def test_a_client_that_stops_reading_early_frees_the_sequence(system: System) -> None:
    stream = system.client.generate("abc", max_tokens=400, ignore_eos=True)
    await anext(stream)
    await stream.aclose()
    reply = await system.generate("abc", max_tokens=5, seed=1, ignore_eos=True)
    assert len(reply.token_ids) == 5
