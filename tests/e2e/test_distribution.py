"""Sampled text follows the target's distribution, speculation on, through all services."""

import asyncio
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.engine import engine
from support.driver import FlatStepTimes
from support.system import start_system

PROMPT = [40, 41, 42]
KEPT = 4
NUM_REQUESTS = 126
AT_ONCE = 3
"""Requests, all of whose choices a verifier and a draft compute together."""
NUM_CHOICES = 16
TOKENS = 3


def _expected(folder: str, temperature: float) -> dict[tuple[int, ...], float]:
    """Probability of every text of TOKENS tokens under transformers, only the KEPT likeliest tokens kept each time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(TOKENS):
        longer: dict[tuple[int, ...], float] = {}
        for text, so_far in texts.items():
            with torch.inference_mode():
                logits = model(torch.tensor([[*PROMPT, *text]])).logits[0, -1].double()
            kept = logits.topk(KEPT)
            for token_id, p in zip(
                kept.indices.tolist(), (kept.values / temperature).softmax(-1).tolist(), strict=True
            ):
                longer[(*text, token_id)] = so_far * p
        texts = longer
    return texts


@pytest.mark.parametrize("temperature", [1.0, 3.0])
async def test_texts_are_as_frequent_as_the_target_says(
    target_folder: str, draft_folder: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Texts are so short that on a slow machine none would wait for its draft, if steps did not count as long.
    monkeypatch.setattr(engine, "StepTimes", FlatStepTimes)
    expected = _expected(target_folder, temperature)
    counts: Counter[tuple[int, ...]] = Counter()
    drafted = 0
    async with start_system(target_folder, [draft_folder]) as system:

        async def ask(seed: int) -> None:
            nonlocal drafted
            texts: dict[int, list[int]] = {}
            events = system.client.generate(
                PROMPT, seed=seed, n=NUM_CHOICES, max_tokens=TOKENS, temperature=temperature, top_k=KEPT,
                ignore_eos=True,
            )  # fmt: skip
            async for event in events:
                if event.HasField("delta"):
                    texts.setdefault(event.delta.choice, []).extend(event.delta.token_ids)
                drafted += event.usage.num_drafted_tokens
            counts.update(tuple(text) for text in texts.values())

        for first in range(0, NUM_REQUESTS, AT_ONCE):
            await asyncio.gather(*(ask(seed) for seed in range(first, first + AT_ONCE)))
    total = NUM_REQUESTS * NUM_CHOICES
    assert sum(counts.values()) == total
    assert counts.keys() <= expected.keys()
    assert drafted > total / 10, "too few proposals for the test to say anything"
    # Rare texts are counted together, so that every cell expects at least five.
    common = [text for text, p in expected.items() if p * total >= 5]
    cells = [(expected[text] * total, counts[text]) for text in common]
    rest = total - sum(cell[0] for cell in cells)
    if rest > 5:
        cells.append((rest, total - sum(cell[1] for cell in cells)))
    statistic = sum((seen - wanted) ** 2 / wanted for wanted, seen in cells)
    freedom = len(cells) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5 + 8, f"{statistic:.1f} with {freedom} degrees of freedom"
