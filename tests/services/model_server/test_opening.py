"""What opens a sequence is checked before the engine hears of it: one caller's mistake is nobody else's trouble."""

import asyncio
import math
from typing import Any

import pytest

from paceline.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from paceline.internal.v1 import speculation_pb2
from services.common.digest import EMPTY_DIGEST, extend_digest
from services.common.sampling_params import SamplingParams
from services.engine.engine import EngineFacts
from services.engine.model import ModelDescription
from services.engine.sequence import Sequence
from services.model_server.opening import MAX_DRAFT_TOKENS, Opened, to_digests, to_sequence

VOCAB = 256
CONTEXT = 64
DESCRIPTION = ModelDescription("ab" * 32, "TinyForCausalLM", CONTEXT, VOCAB, (2,), 1000, "float32", "cpu")
FACTS = EngineFacts(
    description=DESCRIPTION, max_context_tokens=CONTEXT, max_step_tokens=32, block_size=4, block_bytes=64,
    kv_identity="float32; own forward", targets={}, max_adapter_rank=64, packer=None,
)  # fmt: skip


def opened(**changes: Any) -> Opened:
    """What a good message opens, changed in some fields; those of `sampling` are added to the seed."""
    sampling = {"seed": 1, **changes.pop("sampling", {})}
    fields = {"token_ids": range(10), "num_prompt_tokens": 8, "sampling": sampling, **changes}
    return to_sequence(speculation_pb2.Open(**fields), FACTS, "tiny")


def test_a_good_message_opens_a_sequence() -> None:
    sequence, end, _ = opened(priority=3, sampling={"max_tokens": 5, "logit_bias": {VOCAB - 1: 1.0}})
    assert sequence.token_ids == list(range(10))
    assert (sequence.num_prompt_tokens, sequence.priority, sequence.first_logits, end) == (8, 3, 9, 13)
    assert sequence.params.logit_bias == {VOCAB - 1: 1.0}


def test_without_a_limit_it_ends_with_the_context() -> None:
    assert opened().end == CONTEXT
    assert opened(sampling={"max_tokens": 10_000}).end == CONTEXT


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("open.token_ids", {"token_ids": []}),
        ("open.token_ids", {"token_ids": [*range(9), VOCAB]}),
        ("open.token_ids", {"token_ids": [1] * CONTEXT}),
        ("open.num_prompt_tokens", {"num_prompt_tokens": 0}),
        ("open.num_prompt_tokens", {"num_prompt_tokens": 11}),
        ("open.max_draft_tokens", {"max_draft_tokens": MAX_DRAFT_TOKENS + 1}),
        ("open.max_draft_tokens", {"max_draft_tokens": 2**32 - 1}),
        ("open.adapter_digest", {"adapter_digest": "ab" * 31}),
        ("open.adapter_digest", {"adapter_digest": "AB" * 32}),
        ("open.tenant.num_public_tokens", {"tenant": {"namespace": "a", "num_public_tokens": 9}}),
        ("open.sampling.max_tokens", {"sampling": {"max_tokens": 2}}),
        ("open.sampling.logit_bias", {"sampling": {"logit_bias": {VOCAB: 1.0}}}),
        ("open.sampling.logit_bias", {"sampling": {"logit_bias": {8192: 1.0, 3: 1.0}}}),
        *(("open.sampling.logit_bias", {"sampling": {"logit_bias": {3: value}}}) for value in (math.nan, math.inf)),
        *(
            (f"open.sampling.{name}", {"sampling": {name: value}})
            for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
            for value in (math.nan, math.inf, -math.inf)
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        opened(**changes)
    assert [violation.field for violation in raised.value.violations] == [field]


def test_every_sampling_parameter_that_does_not_fit_is_named() -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        opened(sampling={"temperature": -1, "top_p": 2})
    assert {violation.field for violation in raised.value.violations} == {
        "open.sampling.temperature", "open.sampling.top_p",
    }  # fmt: skip


def test_a_sequence_without_a_seed_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"open\.sampling\.seed"):
        to_sequence(speculation_pb2.Open(token_ids=[1], num_prompt_tokens=1), FACTS, "tiny")


def test_another_model_or_another_revision_of_it_is_refused() -> None:
    assert opened(model="tiny", revision_digest=DESCRIPTION.revision_digest)
    with pytest.raises(NotFoundError):
        opened(model="large")
    with pytest.raises(FailedPreconditionError) as raised:
        opened(model="tiny", revision_digest="cd" * 32)
    assert raised.value.reason == "REVISION_CHANGED"


def digests(**changes: Any) -> list[bytes]:
    sequence = opened(**changes).sequence
    return [sequence.digest_of_block(index, FACTS.block_size) for index in range(2)]


def test_blocks_are_shared_within_a_tenant_a_model_and_an_adapter_alone() -> None:
    tenants = [{"tenant": {"namespace": name}} for name in ("a", "b")]
    adapted = {**tenants[0], "adapter_digest": "cd" * 32}
    assert digests(**tenants[0]) == digests(**tenants[0])
    assert len({digests(**changes)[0] for changes in (*tenants, adapted)}) == 3


def test_nobodys_blocks_are_never_found_again() -> None:
    assert digests()[0] != digests()[0]
    assert opened().sequence.roots.label_of(0) == ""


def test_a_public_prefix_is_shared_by_all_and_what_follows_it_is_not() -> None:
    one, other = ({"tenant": {"namespace": name, "num_public_tokens": 5}} for name in ("a", "b"))
    assert digests(**one)[0] == digests(**other)[0]
    assert digests(**one)[1] != digests(**other)[1]
    roots = opened(**one).sequence.roots
    assert (roots.label_of(0), roots.label_of(1)) == ("public", "a")


def test_lengths_are_looked_at_before_what_is_in_them() -> None:
    for field, changes in (
        ("open.token_ids", {"token_ids": [VOCAB] * 1_000_000}),
        ("open.sampling.logit_bias", {"sampling": {"logit_bias": dict.fromkeys(range(VOCAB, 20_000), math.nan)}}),
    ):
        with pytest.raises(InvalidArgumentError, match=r"1000000 tokens|at most 1024 entries") as caught:
            opened(**changes)
        assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize("num_tokens", [1, 4, 1023, 1024, 5000])
async def test_digests_of_a_long_text_are_made_piece_by_piece(num_tokens: int) -> None:
    token_ids = [number % 251 for number in range(num_tokens)]
    sequence, plain = (Sequence(token_ids, num_tokens, SamplingParams()) for _ in range(2))
    task = asyncio.create_task(to_digests(sequence, 16))
    num_turns = 0
    while not task.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert num_turns > num_tokens / 1024
    assert task.result() == extend_digest(EMPTY_DIGEST, token_ids)
    assert len(sequence.block_digests) == num_tokens // 16
    assert sequence.block_digests == [plain.digest_of_block(index, 16) for index in range(num_tokens // 16)]
