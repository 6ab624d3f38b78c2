"""OpenAI's request bodies as the messages that the core takes. All wrong fields of a body are told at once, by name.

Fields that change the answer are taken or refused, never ignored; what is only said about a request is ignored.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from gateway.generation.validation import Request
from paceline.errors import FieldViolation, InvalidArgumentError
from paceline.v1 import inference_pb2, sampling_pb2

COMPLETIONS = "/v1/completions"
CHAT_COMPLETIONS = "/v1/chat/completions"
_IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "stream": (False,), "stream_options": (None,), "echo": (False,), "best_of": (1,), "suffix": ("",),
    "response_format": ({"type": "text"},), "tools": ([],), "tool_choice": ("none",), "functions": ([],),
    "modalities": (["text"],), "parallel_tool_calls": (True, False), "reasoning_effort": (None,),
}  # fmt: skip
"""What else these fields may say than nothing; anything more is not done here."""
_SAMPLING: dict[str, type] = {
    "temperature": float, "top_p": float, "top_k": int, "min_p": float, "seed": int, "repetition_penalty": float,
    "presence_penalty": float, "frequency_penalty": float, "ignore_eos": bool, "min_tokens": int,
    "skip_special_tokens": bool,
}  # fmt: skip
_REQUEST: dict[str, type] = {"model": str, "adapter": str, "n": int, "priority": int}
Body: TypeAlias = Mapping[str, Any]


def read_body(url: str, body: Body) -> Request:
    """The message of a body for one of the URLs above. Raises InvalidArgumentError."""
    reader = _Reader(body)
    request = reader.chat() if url == CHAT_COMPLETIONS else reader.completion()
    if reader.violations:
        first, *more = reader.violations
        raise InvalidArgumentError(*first, *more)
    return request


class _Reader:
    """Reads one body, and keeps what is wrong with it."""

    def __init__(self, body: Body) -> None:
        self._left = {name: value for name, value in body.items() if value is not None and name not in _IGNORED}
        self.violations: list[FieldViolation] = []

    def completion(self) -> inference_pb2.GenerateRequest:
        request = inference_pb2.GenerateRequest()
        prompt = self._left.pop("prompt", None)
        if isinstance(prompt, str):
            self._put(lambda: setattr(request, "prompt", prompt), "prompt")
        elif isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
            self._put(lambda: request.token_ids.ids.extend(prompt), "prompt")
        else:
            self._wrong("prompt", "must be a text or a list of token ids")
        self._common(request)
        if "logprobs" in self._left:
            self._set(request.sampling, "logprobs", int)
        self._rest()
        return request

    def chat(self) -> inference_pb2.ChatRequest:
        request = inference_pb2.ChatRequest()
        messages = self._left.pop("messages", None)
        if not isinstance(messages, list) or not messages:
            self._wrong("messages", "must be a list of messages")
        else:
            for place, message in enumerate(messages):
                self._message(request, f"messages[{place}]", message)
        if "max_completion_tokens" in self._left:
            self._left["max_tokens"] = self._left.pop("max_completion_tokens")
        self._common(request)
        top = self._left.pop("top_logprobs", None)
        if self._left.pop("logprobs", False) is True:
            self._left["logprobs"] = 0 if top is None else top
            self._set(request.sampling, "logprobs", int)
        elif top is not None:
            self._wrong("top_logprobs", "takes logprobs: true")
        self._rest()
        return request

    def _message(self, request: inference_pb2.ChatRequest, field: str, message: Any) -> None:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            self._wrong(field, "must be an object with role and content")
            return
        unknown = sorted(name for name, value in message.items() if value and name not in ("role", "content", "name"))
        if unknown:
            self._wrong(f"{field}.{unknown[0]}", "is not done here")
        content = message.get("content")
        if isinstance(content, list):
            parts = [
                part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
            ]
            content = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
        if isinstance(content, str):
            self._put(lambda: request.messages.add(role=message["role"], content=content), field)
        else:
            self._wrong(f"{field}.content", "must be text, or parts of type text")

    def _common(self, request: Request) -> None:
        sampling = request.sampling
        for name, kind in _REQUEST.items():
            self._set(request, name, kind)
        for name, kind in _SAMPLING.items():
            self._set(sampling, name, kind)
        self._set(sampling, "max_tokens", int)
        stop = self._left.pop("stop", [])
        stops = [stop] if isinstance(stop, str) else stop
        if isinstance(stops, list) and all(isinstance(each, str) for each in stops):
            self._put(lambda: sampling.stop.extend(stops), "stop")
        else:
            self._wrong("stop", "must be a text or a list of texts")
        self._bias(sampling, self._left.pop("logit_bias", {}))

    def _bias(self, sampling: sampling_pb2.SamplingParams, bias: Any) -> None:
        if not isinstance(bias, dict):
            self._wrong("logit_bias", "must be an object")
            return
        for token, value in bias.items():
            if token.isdecimal() and type(value) in (int, float):
                self._put(lambda: sampling.logit_bias.__setitem__(int(token), value), f"logit_bias.{token}")  # noqa: B023
            else:
                self._wrong(f"logit_bias.{token}", "must be a number for a token id")

    def _set(self, message: Any, name: str, kind: type) -> None:
        """Takes a field as it is."""
        if name not in self._left:
            return
        value = self._left.pop(name)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            self._wrong(name, f"must be of type {kind.__name__}")
        else:
            self._put(lambda: setattr(message, name, value), name)

    def _put(self, put: Callable[[], object], field: str) -> None:
        try:
            put()
        except (ValueError, TypeError, OverflowError):
            self._wrong(field, "cannot be taken: out of range, or no text in UTF-8")

    def _rest(self) -> None:
        for name, value in self._left.items():
            if name not in _DEFAULTS:
                self._wrong(name, "is no field that is known here")
            elif value not in _DEFAULTS[name]:
                self._wrong(name, "is not done here")

    def _wrong(self, field: str, description: str) -> None:
        self.violations.append(FieldViolation(field, description))
