"""One line of a batch's input: read, checked as far as it can be without a model, and made ready to be kept."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from gateway.generation.validation import Request, check_request
from gateway.openai.bodies import CHAT_COMPLETIONS, COMPLETIONS, read_body
from paceline.errors import FieldViolation, InvalidArgumentError
from paceline.v1 import inference_pb2, model_pb2

_FIELDS = ("custom_id", "method", "url", "body")
_MAX_CUSTOM_ID = 512
_BYTES_A_TOKEN = 4
_AFFINITY_CHARACTERS = 256


class KnownModel(NamedTuple):
    """What lines are checked against."""

    info: model_pb2.ModelInfo
    draft_tokens: int
    has_chat_template: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is in order."""

    custom_id: str
    is_chat: bool
    request: bytes
    """The request message, with the model's id and a seed."""
    affinity: str
    model: str
    adapter: str
    num_prompt_tokens: int
    """Estimated."""
    max_tokens: int
    """Of all choices."""


def read_line(data: bytes, models: Mapping[str, KnownModel]) -> Line:
    """A line of JSON. Raises InvalidArgumentError with every field that is wrong."""
    written = _json(data)
    custom_id, url, body = written.get("custom_id"), written.get("url"), written.get("body")
    violations = [FieldViolation(name, "is no field of a line") for name in written if name not in _FIELDS]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_CUSTOM_ID or not _is_plain(custom_id):
        violations.append(FieldViolation("custom_id", f"must be a text of 1 to {_MAX_CUSTOM_ID} characters"))
    if written.get("method") != "POST":
        violations.append(FieldViolation("method", "must be POST"))
    if url not in (COMPLETIONS, CHAT_COMPLETIONS):
        violations.append(FieldViolation("url", f"must be {COMPLETIONS} or {CHAT_COMPLETIONS}"))
    if not isinstance(body, dict):
        violations.append(FieldViolation("body", "must be an object"))
    if violations:
        raise InvalidArgumentError(*violations[0], *violations[1:])
    try:
        return _line(str(custom_id), str(url), body, models)
    except InvalidArgumentError as error:
        named = [(name.removeprefix("sampling."), problem) for name, problem in error.violations]
        first, *more = (FieldViolation(f"body.{name}", problem) for name, problem in named)
        raise InvalidArgumentError(*first, *more) from error


def _line(custom_id: str, url: str, body: Any, models: Mapping[str, KnownModel]) -> Line:
    request = read_body(url, body)
    if not request.model and len(models) == 1:
        request.model = next(iter(models))
    model = models.get(request.model)
    if model is None:
        names = ", ".join(map(repr, models)) or "none"
        raise InvalidArgumentError("model", f"is none that is served now: {names}")
    is_chat = url == CHAT_COMPLETIONS
    if is_chat and not model.has_chat_template:
        raise InvalidArgumentError("messages", "the model has no chat template")
    parameters = check_request(request, model.info.vocab_size, model.draft_tokens)
    if not request.sampling.HasField("seed"):
        request.sampling.seed = secrets.randbits(63)
    text = _text(request)
    ids = _ids(request)
    num_prompt_tokens = -(-len(text.encode()) // _BYTES_A_TOKEN) if ids is None else len(ids)
    room = max(1, model.info.max_context_tokens - num_prompt_tokens)
    most = min(room, request.sampling.max_tokens) if request.sampling.HasField("max_tokens") else room
    return Line(
        *(custom_id, is_chat, request.SerializeToString(deterministic=True), _affinity(request, text)),
        *(request.model, request.adapter, num_prompt_tokens, most * parameters.num_choices),
    )


def _json(data: bytes) -> dict[str, Any]:
    try:
        written = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise InvalidArgumentError("line", f"is not UTF-8: byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError("line", f"is not JSON: {error}") from error
    if not isinstance(written, dict):
        raise InvalidArgumentError("line", "must be an object")
    return written


def _is_plain(text: str) -> bool:
    """Whether every database can keep a text: JSON can write halves of characters."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _ids(request: Request) -> Sequence[int] | None:
    if isinstance(request, inference_pb2.GenerateRequest) and request.WhichOneof("input") == "token_ids":
        return request.token_ids.ids
    return None


def _text(request: Request) -> str:
    if isinstance(request, inference_pb2.ChatRequest):
        return "\n".join(message.content for message in request.messages)
    return request.prompt


def _affinity(request: Request, text: str) -> str:
    """A few characters that are alike where model, adapter and the beginning of the prompt are."""
    ids = _ids(request)
    start = text[:_AFFINITY_CHARACTERS] if ids is None else str(ids[:_AFFINITY_CHARACTERS])
    return blake2b(f"{request.model}\0{request.adapter}\0{start}".encode(), digest_size=8).hexdigest()
