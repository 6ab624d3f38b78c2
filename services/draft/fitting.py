"""A target's sequence as a draft with another context and another padding of the same vocabulary can follow it."""

from dataclasses import replace

from paceline.internal.v1 import speculation_pb2
from services.common.sampling_params import SamplingParams
from services.engine.engine import EngineFacts
from services.model_server.opening import check_lengths


def fit(opening: speculation_pb2.Open, facts: EngineFacts) -> speculation_pb2.Open | None:
    """The opening without what the draft cannot know; None when there is nothing that it could propose.

    A draft has nothing to say past its own context, nor of a text with tokens that it does not have. Sampling
    parameters for such tokens are left out: they change the target's picks, and so at most what is accepted.
    Raises InvalidArgumentError for more of anything than a sequence may have.
    """
    check_lengths(opening)
    vocab_size, context = facts.description.vocab_size, facts.max_context_tokens
    if len(opening.token_ids) >= context or max(opening.token_ids, default=0) >= vocab_size:
        return None
    fitted = speculation_pb2.Open()
    fitted.CopyFrom(opening)
    sampling = fitted.sampling
    for token_id in [each for each in sampling.logit_bias if each >= vocab_size]:
        del sampling.logit_bias[token_id]
    sampling.stop_token_ids[:] = [each for each in sampling.stop_token_ids if each < vocab_size]
    known = [word for word in fitted.bad_words if max(word.token_ids, default=0) < vocab_size]
    del fitted.bad_words[:]
    fitted.bad_words.extend(known)
    room = context - opening.num_prompt_tokens
    if sampling.min_tokens > room:
        sampling.min_tokens = max(0, room)
    return fitted


def fit_params(params: SamplingParams, vocab_size: int) -> SamplingParams:
    """Parameters of a target's sequence without the tokens that a draft does not have."""

    def known(ids: frozenset[int]) -> frozenset[int]:
        return frozenset(each for each in ids if each < vocab_size)

    return replace(
        params,
        logit_bias={each: bias for each, bias in params.logit_bias.items() if each < vocab_size},
        stop_token_ids=known(params.stop_token_ids),
        barred_at_first=known(params.barred_at_first),
        bad_words=tuple(word for word in params.bad_words if max(word) < vocab_size),
    )
