"""What a program says to a client, as the messages that a gateway takes. Mistakes are found here, before any call."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from paceline.v1 import inference_pb2, sampling_pb2

Message = Mapping[str, str] | tuple[str, str]
"""{"role": ..., "content": ...}, or the pair (role, content)."""

_OF_REQUEST = ("model", "adapter", "n", "priority")
_OF_MESSAGE = ("role", "content")


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


def generate_request(prompt: str | Sequence[int], options: Options) -> inference_pb2.GenerateRequest:
    """The message for `Client.generate`. Raises TypeError or ValueError when a prompt or an option cannot be one."""
    request = inference_pb2.GenerateRequest(**_fields(options))
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.token_ids.ids.extend(prompt)
    return request


def chat_request(messages: Sequence[Message], options: Options) -> inference_pb2.ChatRequest:
    """The message for `Client.chat`. Raises TypeError or ValueError when a message or an option cannot be one."""
    if isinstance(messages, (str, bytes, Mapping)):
        raise TypeError(f"messages are a list of them, not {_what(messages)}")
    said = [_chat_message(place, message) for place, message in enumerate(messages)]
    return inference_pb2.ChatRequest(messages=said, **_fields(options))


def _chat_message(place: int, message: Any) -> inference_pb2.ChatMessage:
    if isinstance(message, Mapping):
        if sorted(map(str, message)) != sorted(_OF_MESSAGE):
            held = ", ".join(map(repr, message)) or "nothing"
            raise ValueError(f"messages[{place}] must hold 'role' and 'content' and nothing else; it holds {held}")
        role, content = message["role"], message["content"]
    elif isinstance(message, (tuple, list)) and len(message) == 2:
        role, content = message
    else:
        raise TypeError(
            f'messages[{place}] must be {{"role": ..., "content": ...}} or the pair (role, content), '
            f"not {_what(message)}"
        )
    for name, value in zip(_OF_MESSAGE, (role, content), strict=True):
        if not isinstance(value, str):
            raise TypeError(f"messages[{place}]: the {name} must be text, not {_what(value)}")
    return inference_pb2.ChatMessage(role=role, content=content)


def _fields(options: Options) -> dict[str, Any]:
    rest: dict[str, Any] = dict(options)
    for name, value in rest.items():
        if name not in Options.__annotations__:
            near = difflib.get_close_matches(name, Options.__annotations__, 1)
            raise TypeError(f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        _check(name, value)
    fields: dict[str, Any] = {name: rest.pop(name) for name in _OF_REQUEST if name in rest}
    mode = inference_pb2.Speculation.MODE_AUTO if rest.pop("speculation", True) else inference_pb2.Speculation.MODE_OFF
    fields["speculation"] = inference_pb2.Speculation(mode=mode, max_draft_tokens=rest.pop("max_draft_tokens", None))
    fields["sampling"] = sampling_pb2.SamplingParams(**rest)
    return fields


def _check(name: str, value: Any) -> None:
    """Refuses a value that its field cannot hold, by the option's name: protobuf's errors do not tell it."""
    if name == "stop" and isinstance(value, str):
        raise TypeError("stop: a list of strings is taken, not one string")
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
