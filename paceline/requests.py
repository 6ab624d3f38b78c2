"""What a program says to a client, as the messages that a gateway takes. Mistakes are found here, before any call."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from paceline.v1 import inference_pb2, sampling_pb2

Message = Mapping[str, Any] | tuple[str, str]
"""{"role": ..., "content": ...}, or the pair (role, content).

The content is text, or a list of parts {"type": "text", "text": ...}. Further fields, such as tool_calls, tool_call_id,
name or reasoning_content, go to the model's chat template as they are.
"""

_OF_REQUEST = ("model", "adapter", "n", "priority")
_OF_CHAT = ("tools", "documents", "template_arguments", "continue_final_message", "chat_template")


class Options(TypedDict, total=False):
    """What may be said about a request; see SamplingParams and GenerateRequest in the protos."""

    model: str
    adapter: str
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    max_tokens: int
    stop: Sequence[str]
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    ignore_eos: bool
    logprobs: int
    n: int
    priority: int
    speculation: bool
    max_draft_tokens: int
    stop_token_ids: Sequence[int]
    min_tokens: int
    bad_words: Sequence[str]
    skip_special_tokens: bool


class ChatOptions(Options, total=False):
    """What may be said about a chat besides; see ChatRequest in the protos."""

    tools: Sequence[Mapping[str, Any]]
    documents: Sequence[Mapping[str, Any]]
    template_arguments: Mapping[str, Any]
    continue_final_message: bool
    chat_template: str


def generate_request(prompt: str | Sequence[int], options: Options) -> inference_pb2.GenerateRequest:
    """The message for `Client.generate`. Raises TypeError or ValueError when a prompt or an option cannot be one."""
    request = inference_pb2.GenerateRequest(**_fields(options))
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.token_ids.ids.extend(prompt)
    return request


def chat_request(messages: Sequence[Message], options: ChatOptions) -> inference_pb2.ChatRequest:
    """The message for `Client.chat`. Raises TypeError or ValueError when a message or an option cannot be one."""
    if isinstance(messages, (str, bytes, Mapping)):
        raise TypeError(f"messages are a list of them, not {_what(messages)}")
    said = [_chat_message(place, message) for place, message in enumerate(messages)]
    rest: dict[str, Any] = dict(options)
    own = {name: _of_chat(name, rest.pop(name)) for name in _OF_CHAT if name in rest}
    return inference_pb2.ChatRequest(messages=said, **own, **_fields(rest, ChatOptions.__annotations__))


def _of_chat(name: str, value: Any) -> Any:
    """An option of a chat as its field holds it: objects as JSON."""
    if name in ("tools", "documents"):
        if isinstance(value, (str, bytes, Mapping)):
            raise TypeError(f"{name}: a list of objects is taken, not {_what(value)}")
        return [_json(f"{name}[{at}]", each) for at, each in enumerate(value)]
    if name == "template_arguments":
        return _json(name, value)
    try:
        inference_pb2.ChatRequest(**{name: value})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    return value


def _chat_message(place: int, message: Any) -> inference_pb2.ChatMessage:
    if isinstance(message, (tuple, list)) and len(message) == 2:
        message = dict(zip(("role", "content"), message, strict=True))
    if not isinstance(message, Mapping):
        raise TypeError(
            f'messages[{place}] must be {{"role": ..., "content": ...}} or the pair (role, content), '
            f"not {_what(message)}"
        )
    more = dict(message)
    role = more.pop("role", None)
    if not isinstance(role, str):
        raise TypeError(f"messages[{place}]: the role must be text, not {_what(role)}")
    if not more:
        raise ValueError(f"messages[{place}] must hold a content, or what stands in its place")
    made = inference_pb2.ChatMessage(role=role)
    content = more.get("content")
    if isinstance(content, str) and (content or len(more) == 1):
        made.content = more.pop("content")
    elif isinstance(content, (list, tuple)):
        parts = enumerate(more.pop("content"))
        made.parts.extend(_part(f"messages[{place}].content[{at}]", part) for at, part in parts)
    elif content not in (None, ""):
        raise TypeError(f"messages[{place}]: the content must be text or a list of parts, not {_what(content)}")
    if more:
        made.fields = _json(f"messages[{place}]", more)
    return made


def _part(place: str, part: Any) -> inference_pb2.ContentPart:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise TypeError(f'{place} must be {{"type": "text", "text": ...}}, not {_what(part)}')
    return inference_pb2.ContentPart(text=part["text"])


def _json(place: str, value: Any) -> str:
    """An object as JSON, its keys in their order."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{place}: an object is taken, not {_what(value)}")
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{place}: {error}") from None


def _fields(options: Mapping[str, Any], known: Mapping[str, Any] = Options.__annotations__) -> dict[str, Any]:
    rest = dict(options)
    for name, value in rest.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise TypeError(f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        _check(name, value)
    fields: dict[str, Any] = {name: rest.pop(name) for name in _OF_REQUEST if name in rest}
    mode = inference_pb2.Speculation.MODE_AUTO if rest.pop("speculation", True) else inference_pb2.Speculation.MODE_OFF
    fields["speculation"] = inference_pb2.Speculation(mode=mode, max_draft_tokens=rest.pop("max_draft_tokens", None))
    fields["sampling"] = sampling_pb2.SamplingParams(**rest)
    return fields


def _check(name: str, value: Any) -> None:
    """Refuses a value that its field cannot hold, by the option's name: protobuf's errors do not tell it."""
    if name in ("stop", "bad_words") and isinstance(value, str):
        raise TypeError(f"{name}: a list of strings is taken, not one string")
    if name in ("speculation", "max_draft_tokens"):
        return
    kind = inference_pb2.GenerateRequest if name in _OF_REQUEST else sampling_pb2.SamplingParams
    try:
        kind(**{name: value})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def _what(value: object) -> str:
    """A value's type, and the value itself where it is short."""
    shown = repr(value)
    return type(value).__name__ + (f" {shown}" if len(shown) <= 60 else "")
