"""What was not picked, and by how much: the same however few tokens are looked at."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.sampling_params import SamplingParams
from services.engine.noise import gumbel, row_state, signed
from services.engine.sampler import BROKEN, Row, sample

COUNT = 8


def row(params: SamplingParams, position: int) -> Row:
    return Row(params, position, (1, 2, 3), 2, COUNT)


def expected_of(scores: torch.Tensor, params: SamplingParams, at: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest of all scores with noise, and the tokens."""
    if params.temperature == 0:
        return scores.double().topk(min(1 + COUNT, scores.shape[1]))
    states = torch.tensor([signed(row_state(params.seed, position)) for position in at])
    noisy = scores.double() / params.temperature + gumbel(states, scores.shape[1])
    return noisy.topk(min(1 + COUNT, scores.shape[1]))


@given(
    vocab=st.sampled_from([5, 300, 30_000, 70_000]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 4.0, 30.0]),
    temperature=st.sampled_from([0.01, 0.7, 1.0, 30.0]),
    seed=st.integers(0, 2**64 - 1),
    barred=st.sampled_from([None, 2, 10_000]),
)
@settings(max_examples=60, deadline=None)
def test_those_of_sampled_rows_are_those_of_all_tokens(
    vocab: int, spread: float, temperature: float, seed: int, barred: int | None
) -> None:
    scores = torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed % 1000)) * spread
    if barred:  # All tokens but every second, or but a handful, are impossible.
        possible = scores[:, ::barred].clone()
        scores[:] = -torch.inf
        scores[:, ::barred] = possible
    params = SamplingParams(temperature=temperature, seed=seed)
    values, token_ids = expected_of(scores, params, [1, 2, 3])
    picks = sample(scores, [row(params, position) for position in (1, 2, 3)])
    assert picks.token_ids == token_ids[:, 0].tolist()
    for got, ids, found in zip(picks.runners_up, token_ids, values, strict=True):
        gaps = found[0] - found[1:]
        there = int(gaps.isfinite().sum())
        assert [runner.token_id for runner in got[:there]] == ids[1 : 1 + there].tolist()
        assert [runner.gap for runner in got] == pytest.approx(gaps.tolist(), abs=1e-9)


@pytest.mark.parametrize("vocab", [50, 70_000])
def test_greedy_sampled_and_cut_rows_go_together(vocab: int) -> None:
    scores = torch.randn(4, vocab, generator=torch.Generator().manual_seed(1)) * 3
    params = [
        SamplingParams(temperature=0),
        SamplingParams(seed=3),
        SamplingParams(seed=4, top_k=3),
        SamplingParams(seed=5, top_k=1),
    ]
    picks = sample(scores, [row(each, position) for position, each in enumerate(params, start=1)])
    for at in (0, 1):
        values, token_ids = expected_of(scores[at : at + 1], params[at], [at + 1])
        assert [picks.token_ids[at], *(runner.token_id for runner in picks.runners_up[at])] == token_ids[0].tolist()
        gaps = (values[0, 0] - values[0, 1:]).tolist()
        assert [runner.gap for runner in picks.runners_up[at]] == pytest.approx(gaps)
    three = set(scores[2].topk(3).indices.tolist())
    possible = [runner.token_id for runner in picks.runners_up[2] if runner.gap < float("inf")]
    assert {picks.token_ids[2], *possible} == three
    assert len(possible) == 2
    assert picks.token_ids[3] == int(scores[3].argmax())
    assert all(runner.gap == float("inf") for runner in picks.runners_up[3])
    for at in range(4):
        alone = sample(scores[at : at + 1], [row(params[at], at + 1)])
        assert alone.runners_up[0] == picks.runners_up[at]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_numbers_has_none_to_tell_and_hurts_no_other(temperature: float) -> None:
    scores = torch.randn(2, 70_000, generator=torch.Generator().manual_seed(2))
    params = SamplingParams(temperature=temperature, seed=9)
    alone = sample(scores[1:], [row(params, 2)])
    for broken in (scores[0] * float("nan"), scores[0].index_fill(0, torch.tensor([7]), float("nan"))):
        picks = sample(torch.stack((broken, scores[1])), [row(params, 1), row(params, 2)])
        assert picks.token_ids == [BROKEN, alone.token_ids[0]]
        assert picks.runners_up[1] == alone.runners_up[0]
