"""Picks: the target's distribution, the field's meaning of every parameter, and no dependence on the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from services.common.sampling_params import InvalidSamplingError, SamplingParams
from services.engine.noise import gumbel, row_state, signed
from services.engine.noisy_picks import CANDIDATES, Draw, kept_of
from services.engine.sampler import BROKEN, Row, sample
from services.engine.truncation import likeliest


def row(params: SamplingParams, position: int = 4, history: tuple[int, ...] = (1, 2, 3, 3), prompt: int = 2) -> Row:
    return Row(params, position, history, prompt)


def truncate(scores: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    """Scores / temperature [rows, vocab], cut-off tokens at -inf."""
    temperatures = torch.tensor([[each.temperature] for each in params], dtype=torch.float64)
    found = scores / temperatures
    for at, kept in kept_of(Draw.of(scores, [(each, 1) for each in params], None)):
        found[at] = torch.full_like(found[at], -torch.inf).scatter_(1, kept.columns, kept.scaled)
    return found


@given(
    top_k=st.integers(0, 40),
    top_p=st.sampled_from([1.0, 0.95, 0.7, 0.3, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_truncation_keeps_what_transformers_keeps(
    top_k: int, top_p: float, min_p: float, temperature: float, seed: int
) -> None:
    logits = torch.randn(2, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    expected = warpers(None, logits)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    got = truncate(logits, [params, params])
    assert torch.equal(got.isneginf(), expected.isneginf())
    kept = ~expected.isneginf()
    assert torch.allclose(got[kept], expected[kept])


@given(
    top_k=st.sampled_from([0, 0, 1, 20, 256, 300, 5000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.9]),
    spread=st.sampled_from([0.05, 1.0, 3.0, 6.0]),
    is_coarse=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_looking_at_the_likeliest_finds_what_looking_at_all_finds(
    top_k: int, top_p: float, min_p: float, spread: float, is_coarse: bool, seed: int
) -> None:
    """Also where many scores are equal, as those of a model in bfloat16 are."""
    scores = torch.randn(3, 6000, generator=torch.Generator().manual_seed(seed)) * spread
    scores = scores.bfloat16().float() if is_coarse else scores
    params = [SamplingParams(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p)] * 3
    temperatures = torch.full((3, 1), 0.8, dtype=torch.float64)
    whole = likeliest(scores, temperatures, params, 6000)
    assert whole.are_all.all()
    expected = torch.full(scores.shape, -torch.inf, dtype=torch.float64).scatter(1, whole.columns, whole.scaled)
    assert torch.equal(truncate(scores, params), expected)
    for row in range(3):
        assert torch.equal(truncate(scores[row : row + 1], params[:1]), expected[row : row + 1])


def test_few_tokens_are_looked_at_where_few_are_kept() -> None:
    scores = torch.randn(2, 6000, generator=torch.Generator().manual_seed(0)) * 3
    params = [SamplingParams(top_p=0.5), SamplingParams(top_p=0.99)]
    draw = Draw.of(scores, [(each, 1) for each in params], None)
    looked = [(at.tolist(), kept.columns.shape[1]) for at, kept in kept_of(draw)]
    assert looked == [([0, 1], CANDIDATES[0]), ([1], CANDIDATES[1])]


def test_repetition_penalty_is_that_of_transformers() -> None:
    logits = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    history = (3, 5, 5, 9)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([history]), logits.clone()).argmax().item()
    params = SamplingParams(temperature=0, repetition_penalty=1.7)
    assert sample(logits, [row(params, 4, history)]).token_ids == [expected]


@given(
    history=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    words=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=3),
    seed=st.integers(0, 50),
)
@settings(max_examples=50)
def test_bad_words_are_barred_as_in_transformers(history: list[int], words: list[list[int]], seed: int) -> None:
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))
    expected = logits.clone()
    if words:
        expected = NoBadWordsLogitsProcessor(words)(torch.tensor([history]), expected)
    params = SamplingParams(temperature=0, bad_words=tuple(map(tuple, words)))
    got = sample(logits, [row(params, len(history), tuple(history), 1)])
    assert got.token_ids == [expected.argmax().item()]


@pytest.mark.parametrize("position", [3, 4, 5, 6])
def test_a_text_ends_no_sooner_than_in_transformers(position: int) -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
    history = (1, 2, 3, 3, 1, 2)
    processor = MinNewTokensLengthLogitsProcessor(3, 2, [1, 2], device="cpu")
    expected = processor(torch.tensor([history[:position]]), logits.clone()).argmax().item()
    params = SamplingParams(temperature=0, min_tokens=2, barred_at_first=frozenset({1, 2}))
    assert sample(logits, [row(params, position, history, 3)]).token_ids == [expected]


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.9, 0.8]])
    # Prompt: 1, 1. Output: 2, 2, 3.
    history = (1, 1, 2, 2, 3)
    assert sample(logits, [row(SamplingParams(temperature=0, presence_penalty=2.0), 5, history)]).token_ids == [1]
    logits = torch.tensor([[0.0, -5.0, 2.0, 1.5]])
    assert sample(logits, [row(SamplingParams(temperature=0, presence_penalty=1.0), 5, history)]).token_ids == [2]
    assert sample(logits, [row(SamplingParams(temperature=0, frequency_penalty=0.6), 5, history)]).token_ids == [3]


def test_history_ends_at_the_row() -> None:
    logits = torch.tensor([[1.0, 0.9, 0.0]])
    params = SamplingParams(temperature=0, presence_penalty=1.0)
    assert sample(logits, [row(params, 2, (2, 2, 0), 1)]).token_ids == [0]
    assert sample(logits, [row(params, 3, (2, 2, 0), 1)]).token_ids == [1]


def test_logit_bias_is_added() -> None:
    logits = torch.zeros(1, 5)
    assert sample(logits, [row(SamplingParams(temperature=0, logit_bias={3: 1.0}))]).token_ids == [3]


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(temperature=0.7), SamplingParams(top_p=0.8), SamplingParams(top_k=3)]
)
def test_the_distribution_is_the_targets(params: SamplingParams) -> None:
    logits = torch.tensor([1.0, 0.2, -0.5, 2.0, 0.0, -1.0])
    probabilities = truncate(logits.unsqueeze(0), [params]).softmax(-1)[0]
    num = 20_000
    rows = [row(SamplingParams(**_fields(params), seed=seed), position=1 + seed % 7) for seed in range(num)]
    picks = torch.tensor(sample(logits.expand(num, -1), rows).token_ids)
    counts = torch.bincount(picks, minlength=6).double()
    assert (counts[probabilities == 0] == 0).all()
    kept = probabilities > 0
    expected = probabilities[kept] * num
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum().item()
    assert chi_square < 26  # at most 5 degrees of freedom: one run in 10,000 is above


def _fields(params: SamplingParams) -> dict[str, float]:
    return {name: getattr(params, name) for name in ("temperature", "top_p", "top_k")}


def test_equals_argmax_of_logits_over_temperature_plus_noise() -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    rows = [
        row(SamplingParams(temperature=0.8, seed=seed), position) for seed, position in ((1, 5), (2**63, 9), (7, 1))
    ]
    states = torch.tensor([signed(row_state(r.params.seed, r.position)) for r in rows])
    expected = (logits.double() / 0.8 + gumbel(states, 1000)).argmax(-1).tolist()
    assert sample(logits, rows).token_ids == expected


@given(
    vocab=st.sampled_from([5, 300, 5000, 40_000]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 4.0, 30.0]),
    temperature=st.sampled_from([0.01, 0.7, 1.0, 30.0]),
    seed=st.integers(0, 2**64 - 1),
    barred=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_few_tokens_are_looked_at_and_the_pick_is_that_of_all(
    vocab: int, spread: float, temperature: float, seed: int, barred: bool
) -> None:
    scores = torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed % 1000)) * spread
    if barred:
        scores[:, ::2] = -torch.inf
    rows = [row(SamplingParams(temperature=temperature, seed=seed), position) for position in (1, 2, 3)]
    states = torch.tensor([signed(row_state(seed, position)) for position in (1, 2, 3)])
    expected = (scores / torch.tensor(temperature, dtype=torch.float64) + gumbel(states, vocab)).argmax(-1).tolist()
    assert sample(scores, rows).token_ids == expected
    assert sample(scores.T.contiguous().T, rows).token_ids == expected  # However they lie in memory.
    one = [sample(scores[at : at + 1], [rows[at]]).token_ids[0] for at in range(3)]
    assert one == expected


def test_a_pick_does_not_depend_on_the_rows_beside_it() -> None:
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(1)) * 2
    params = [
        SamplingParams(temperature=0),
        SamplingParams(seed=3),
        SamplingParams(temperature=0.5, top_p=0.7, seed=4),
        SamplingParams(temperature=0, repetition_penalty=1.5),
        SamplingParams(top_k=5, min_p=0.1, seed=9, presence_penalty=0.4),
        SamplingParams(seed=3, logit_bias={7: 3.0}),
    ]
    rows = [row(p, position) for position, p in enumerate(params, start=1)]
    together = sample(logits, rows).token_ids
    assert together == [sample(logits[i : i + 1], [rows[i]]).token_ids[0] for i in range(6)]
    assert together[::-1] == sample(logits.flip(0), rows[::-1]).token_ids


def test_logprobs_are_of_the_unprocessed_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    rows = [row(SamplingParams(temperature=0, logit_bias={2: 50.0}, logprobs=2)), row(SamplingParams(temperature=0))]
    picks = sample(logits, rows)
    assert picks.token_ids == [2, 2]
    expected = logits[0].log_softmax(-1)
    first = picks.logprobs[0]
    assert first is not None
    assert first.logprob == pytest.approx(expected[2].item())
    assert [token_id for token_id, _ in first.top] == [0, 1]
    assert [logprob for _, logprob in first.top] == pytest.approx(expected[:2].tolist())
    assert picks.logprobs[1] is None


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_logits_that_are_not_numbers_is_broken_and_no_other(temperature: float) -> None:
    logits = torch.tensor([[0.0, float("nan"), 1.0], [0.0, 99.0, 1.0]])
    assert sample(logits, [row(SamplingParams(temperature=temperature))] * 2).token_ids == [BROKEN, 1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.5),
        ("max_tokens", 0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", float("inf")),
        ("logprobs", 21),
        ("logit_bias", {1: 200.0}),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidSamplingError) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert [name for name, _ in caught.value.violations] == [field]
