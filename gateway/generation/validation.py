"""Checks of what clients send, all in one place. Every wrong field of a request is reported at once."""

import math
import secrets
from collections.abc import Sequence
from typing import Literal, NamedTuple

from paceline.errors import FieldViolation, InvalidArgumentError
from paceline.v1 import inference_pb2, sampling_pb2
from services.common.sampling_params import MAX_LOGIT_BIASES, InvalidSamplingError, SamplingParams

MAX_CHOICES = 16
MAX_PRIORITY = 100
MAX_STOP_CHARACTERS = 256
_MOST: dict[Literal["stop", "bad_words", "stop_token_ids", "logit_bias"], int] = {
    "stop": 16,
    "bad_words": 64,
    "stop_token_ids": 64,
    "logit_bias": MAX_LOGIT_BIASES,
}
"""Most entries of a field."""
MAX_DRAFT_TOKENS = 64

_TEXTUAL: tuple[Literal["stop", "bad_words", "skip_special_tokens"], ...] = ("stop", "bad_words", "skip_special_tokens")
"""Fields of sampling parameters that are about text; a verifier knows none."""
_MOST_TOKENS = (1 << 32) - 1
_BESIDE = (*_TEXTUAL, "logit_bias", "stop_token_ids")
"""Fields that are looked at one by one."""

Request = inference_pb2.GenerateRequest | inference_pb2.ChatRequest


class Parameters(NamedTuple):
    """What a request asks for, defaults filled in."""

    sampling: sampling_pb2.SamplingParams
    """They are complete but for max_tokens, whose default depends on the prompt; without stop strings and bad words,
    which are text."""
    stops: Sequence[str]
    bad_words: Sequence[str]
    skip_special_tokens: bool
    num_choices: int
    priority: int
    max_draft_tokens: int
    """Tokens that a round may verify; 0 where the draft must not be used."""
    applied: sampling_pb2.SamplingParams
    """All of what applies, as the caller is told."""


def check_request(
    request: Request,
    vocab_size: int,
    default_draft_tokens: int,
    defaults: sampling_pb2.SamplingParams | None = None,
) -> Parameters:
    """Checks everything but the prompt and the adapter. Raises InvalidArgumentError.

    Where the request is silent, `defaults` hold: those of the model's authors.
    """
    violations = _sampling_violations(request.sampling, vocab_size)
    num_choices = request.n if request.HasField("n") else 1
    if not 1 <= num_choices <= MAX_CHOICES:
        violations.append(FieldViolation("n", f"must be 1 to {MAX_CHOICES}, got {num_choices}"))
    priority = request.priority if request.HasField("priority") else 0
    if abs(priority) > MAX_PRIORITY:
        violations.append(FieldViolation("priority", f"must be -{MAX_PRIORITY} to {MAX_PRIORITY}, got {priority}"))
    speculation = request.speculation
    draft_tokens = speculation.max_draft_tokens if speculation.HasField("max_draft_tokens") else default_draft_tokens
    if not 1 <= draft_tokens <= MAX_DRAFT_TOKENS:
        violations.append(
            FieldViolation("speculation.max_draft_tokens", f"must be 1 to {MAX_DRAFT_TOKENS}, got {draft_tokens}")
        )
    if speculation.mode not in inference_pb2.Speculation.Mode.values():
        violations.append(FieldViolation("speculation.mode", f"unknown mode {speculation.mode}"))
    if speculation.mode == inference_pb2.Speculation.MODE_OFF:
        draft_tokens = 0
    raise_if_any(violations)
    sampling = sampling_pb2.SamplingParams()
    if defaults is not None:
        sampling.CopyFrom(defaults)
        if request.sampling.min_tokens > sampling.max_tokens:
            sampling.ClearField("max_tokens")
    sampling.MergeFrom(request.sampling)
    if not sampling.HasField("seed"):
        sampling.seed = secrets.randbits(63)
    applied = sampling_pb2.SamplingParams()
    applied.CopyFrom(sampling)
    stops, bad_words = tuple(sampling.stop), tuple(sampling.bad_words)
    skip = sampling.skip_special_tokens if sampling.HasField("skip_special_tokens") else True
    for name in _TEXTUAL:
        sampling.ClearField(name)
    return Parameters(sampling, stops, bad_words, skip, num_choices, priority, draft_tokens, applied)


def check_prompt_tokens(token_ids: Sequence[int], vocab_size: int, context: int, field: str) -> None:
    """Raises InvalidArgumentError when a prompt is empty, leaves no room in the context, or holds unknown ids."""
    if not token_ids:
        raise InvalidArgumentError(field, "must not be empty")
    if len(token_ids) >= context:
        raise InvalidArgumentError(
            field,
            f"the prompt has {len(token_ids)} tokens, which leaves no room in the model's context of {context} tokens",
        )
    check_vocabulary(token_ids, vocab_size, field)


def check_vocabulary(token_ids: Sequence[int], vocab_size: int, field: str) -> None:
    """Raises InvalidArgumentError for ids that are not the vocabulary's. Their number must be bounded."""
    highest = max(token_ids, default=0)
    if highest >= vocab_size:
        raise InvalidArgumentError(field, f"token id {highest} is out of range: the vocabulary has {vocab_size}")


def check_prompt_bytes(num_bytes: int, limit: int, field: str) -> None:
    """Raises InvalidArgumentError when a text is too long to be tokenized at all."""
    if num_bytes > limit:
        raise InvalidArgumentError(field, f"{num_bytes} bytes are more than the limit of {limit} bytes")


def raise_if_any(violations: list[FieldViolation]) -> None:
    """Raises InvalidArgumentError with all violations, if there are any."""
    if violations:
        raise InvalidArgumentError(violations[0].field, violations[0].description, *violations[1:])


def _sampling_violations(sampling: sampling_pb2.SamplingParams, vocab_size: int) -> list[FieldViolation]:
    # Numbers first: a request may hold hundreds of thousands of entries, and a sentence about each.
    few = sampling_pb2.SamplingParams()
    few.CopyFrom(sampling)
    violations = []
    for name, most in _MOST.items():
        if (number := len(getattr(sampling, name))) > most:
            violations.append(FieldViolation(f"sampling.{name}", f"at most {most}, got {number}"))
            few.ClearField(name)
    given = {field.name: getattr(few, field.name) for field, _ in few.ListFields() if field.name not in _BESIDE}
    given.setdefault("max_tokens", _MOST_TOKENS)
    try:
        SamplingParams(**given, logit_bias=dict(few.logit_bias))
    except InvalidSamplingError as error:
        violations.extend(FieldViolation(f"sampling.{name}", problem) for name, problem in error.violations)
    violations.extend(_text_violations("stop", few.stop))
    violations.extend(_text_violations("bad_words", few.bad_words))
    if (highest := max(few.stop_token_ids, default=0)) >= vocab_size:
        violations.append(FieldViolation("sampling.stop_token_ids", f"must be below {vocab_size}, got {highest}"))
    for token_id, bias in few.logit_bias.items():
        if token_id >= vocab_size or not math.isfinite(bias):
            problem = f"must be a finite number for an id below {vocab_size}"
            violations.append(FieldViolation(f"sampling.logit_bias[{token_id}]", problem))
    return violations


def _text_violations(name: str, texts: Sequence[str]) -> list[FieldViolation]:
    return [
        FieldViolation(f"sampling.{name}[{index}]", f"must have 1 to {MAX_STOP_CHARACTERS} characters")
        for index, text in enumerate(texts)
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS
    ]
