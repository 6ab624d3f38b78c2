"""Going on with a request that another gateway had begun: what its client had received is where it goes on from."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from gateway.generation.validation import Parameters, Request, check_vocabulary
from paceline.errors import FailedPreconditionError, InvalidArgumentError
from paceline.v1 import inference_pb2, model_pb2, sampling_pb2

ADAPTER_CHANGED = "ADAPTER_CHANGED"
_REQUEST_ID = re.compile(r"[0-9a-f]{32}")
"""As gateways make them; ids of a batch's items are others."""
_MAX_DRAFTED = 64
"""Proposed tokens that one round may verify, and each round decides one token at least."""


class Received(NamedTuple):
    """What a client had received of a choice."""

    token_ids: Sequence[int]
    usage: inference_pb2.Usage
    """What these cost, as far as their client can tell."""
    finish_reason: "sampling_pb2.FinishReason.ValueType"
    """Why they are all of the choice, unless a stop string ends it before; 0 where they are not."""


def resumed_id(request: Request) -> str:
    """Id of the request that another gateway began; empty for a new one, and for what can be none."""
    return request.resume.request_id if _REQUEST_ID.fullmatch(request.resume.request_id) else ""


def read_received(
    request: Request, parameters: Parameters, info: model_pb2.ModelInfo, num_prompt_tokens: int
) -> list[Received]:
    """What was received of each choice. Raises InvalidArgumentError."""
    resume = request.resume
    if not _REQUEST_ID.fullmatch(resume.request_id):
        raise InvalidArgumentError("resume.request_id", "must be the id that Started told")
    if not request.sampling.HasField("seed"):
        raise InvalidArgumentError("sampling.seed", "must be the one that Started told")
    if len(resume.choices) > parameters.num_choices:
        problem = f"{len(resume.choices)} are more than the request's {parameters.num_choices}"
        raise InvalidArgumentError("resume.choices", problem)
    room = info.max_context_tokens - num_prompt_tokens
    if parameters.sampling.HasField("max_tokens"):
        room = min(room, parameters.sampling.max_tokens)
    choices = [*resume.choices, *[inference_pb2.ReceivedChoice()] * (parameters.num_choices - len(resume.choices))]
    return [
        _received(choice, parameters.sampling, info, room, f"resume.choices[{index}]")
        for index, choice in enumerate(choices)
    ]


def check_adapter(resume: inference_pb2.Resume, digest: str) -> None:
    """Raises FailedPreconditionError when an adapter's name stands for another than when the request was begun."""
    if resume.adapter_digest != digest:
        raise FailedPreconditionError("the adapter is another than the request was begun with", ADAPTER_CHANGED)


def _received(
    choice: inference_pb2.ReceivedChoice,
    sampling: sampling_pb2.SamplingParams,
    info: model_pb2.ModelInfo,
    room: int,
    place: str,
) -> Received:
    token_ids = choice.token_ids
    if len(token_ids) > room:
        problem = f"{len(token_ids)} tokens are more than the {room} that the request may produce"
        raise InvalidArgumentError(f"{place}.token_ids", problem)
    check_vocabulary(token_ids, info.vocab_size, f"{place}.token_ids")
    usage = inference_pb2.Usage(
        num_completion_tokens=len(token_ids),
        num_drafted_tokens=choice.num_drafted_tokens,
        num_accepted_tokens=choice.num_accepted_tokens,
        num_rounds=choice.num_rounds,
    )
    if not choice.num_accepted_tokens <= choice.num_drafted_tokens <= _MAX_DRAFTED * len(token_ids):
        raise InvalidArgumentError(f"{place}.num_drafted_tokens", f"cannot be of {len(token_ids)} tokens")
    if choice.num_rounds > len(token_ids):
        raise InvalidArgumentError(f"{place}.num_rounds", f"cannot be of {len(token_ids)} tokens")
    return Received(token_ids, usage, _finish_reason(token_ids, sampling, info, room))


def _finish_reason(
    token_ids: Sequence[int], sampling: sampling_pb2.SamplingParams, info: model_pb2.ModelInfo, room: int
) -> "sampling_pb2.FinishReason.ValueType":
    """Why a choice ends behind these tokens, by the rules of verifiers; 0 where it does not."""
    last = token_ids[-1] if token_ids else None
    if last in info.eos_token_ids and not sampling.ignore_eos:
        return sampling_pb2.FINISH_REASON_EOS
    if last in sampling.stop_token_ids:
        return sampling_pb2.FINISH_REASON_STOP
    return sampling_pb2.FINISH_REASON_LENGTH if len(token_ids) == room else sampling_pb2.FINISH_REASON_UNSPECIFIED
