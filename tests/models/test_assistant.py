"""The recipe of the assistant's draft: what is trained is what is served, and what is counted is what happened."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from models.assistant.chats import NUM_TOP, Chats, joined, load_chats, save_chats, split
from models.assistant.draft import Draft, commonest_tokens, load_target, matching_scales
from models.assistant.evaluation import positions_of
from models.assistant.exporting import export
from models.assistant.held_out import NUM_QUESTIONS, held_out
from models.assistant.openings import KINDS, draw_opening
from models.assistant.training import BATCH_TOKENS, Lessons, distillation_loss
from services.engine.graft_assembly import assemble
from support.tiny import save_tiny, save_tokenizer

LAYERS = (0, 2, 3)
HEAD = torch.tensor([2, 5, 9, 31, 77, 120, 121, 200])


def chat(seed: int, length: int = 40) -> Chats:
    """A conversation of random tokens of which the second half is an answer."""
    random = np.random.default_rng(seed)
    logprobs = np.log(random.dirichlet(np.ones(NUM_TOP), length)).astype(np.float16)
    return Chats(
        random.integers(0, 256, length).astype(np.uint16), np.array([0, length]), np.array([seed % 6], np.int8),
        np.array([0.5], np.float32), np.arange(length) >= length // 2,
        random.integers(0, 256, (length, NUM_TOP)).astype(np.uint16), logprobs,
    )  # fmt: skip


def test_what_is_trained_is_what_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "target"
    save_tiny(folder, num_hidden_layers=4)
    save_tokenizer(folder)
    target = load_target(folder)
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    scales = matching_scales(target, ids, LAYERS)
    draft = Draft(target, HEAD, scales, LAYERS)
    for name, parameter in draft.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(len(name)))
    export(draft.state_dict(), target.config.to_dict(), tmp_path / "graft", LAYERS)
    served: Any = AutoModelForCausalLM.from_pretrained(assemble(tmp_path / "graft", folder), dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        trained = draft(ids, torch.ones_like(ids, dtype=torch.bool)).float()
    with torch.no_grad():
        expected = served(input_ids=ids).logits[..., HEAD].flatten(0, 1)
    assert (trained - expected).square().mean().sqrt() < 0.05 * expected.std()


def test_the_sizes_of_a_whole_model_are_its_own(tmp_path: Path) -> None:
    target = load_target(Path(save_tiny(tmp_path, num_hidden_layers=3)))
    scales = matching_scales(target, torch.arange(48).reshape(2, 24), (0, 1, 2))
    assert torch.allclose(scales, torch.ones(3), atol=1e-4)


def test_conversations_are_kept_as_they_are(tmp_path: Path) -> None:
    first, second = joined([chat(1), chat(2, 30)]), chat(3)
    save_chats(tmp_path / "000000.npz", first)
    save_chats(tmp_path / "000256.npz", second)
    kept = load_chats(tmp_path)
    assert kept.offsets.tolist() == [0, 40, 70, 110]
    for got, expected in zip(kept.take(np.array([2])), second, strict=True):
        assert np.array_equal(got, expected)


def test_what_is_held_out_is_never_learnt() -> None:
    chats = joined([chat(seed) for seed in range(200)])
    learnt, kept_back = split(chats)
    assert len(learnt) + len(kept_back) == 200
    assert 0 < len(kept_back) < 30
    texts = [{part.token_ids[a:b].tobytes() for a, b in zip(part.offsets, part.offsets[1:], strict=False)}
             for part in (learnt, kept_back)]  # fmt: skip
    assert not texts[0] & texts[1]


def test_a_lesson_asks_for_answers_alone() -> None:
    chats = joined([chat(seed, 30 + seed) for seed in range(100)])
    column_of = np.full(256, -1)
    column_of[HEAD.numpy()] = np.arange(len(HEAD))
    lessons = Lessons(chats, column_of, 0)
    seen = [number for batch in lessons.epoch(0) for number in batch]
    assert sorted(seen) == list(range(100))
    assert [batch.tolist() for batch in lessons.epoch(0)] != [batch.tolist() for batch in lessons.epoch(1)]
    lesson = lessons.lesson(np.array([3, 4]))
    assert lesson.token_ids.numel() <= BATCH_TOKENS
    assert int(lesson.wanted.sum()) == len(lesson.picks) == 17 + 17
    impossible = ~torch.isin(torch.from_numpy(chats.take(np.array([3, 4])).top_ids.astype(np.int64)), HEAD)
    assert lesson.probabilities.sum() < impossible.numel()
    assert not lesson.top[lesson.probabilities == 0].any()


def test_the_loss_is_the_cross_entropy_of_what_the_head_has() -> None:
    chats = chat(1)
    column_of = np.arange(256)
    lesson = Lessons(chats, column_of, 0).lesson(np.array([0]))
    logits = torch.randn(len(lesson.picks), 256, generator=torch.Generator().manual_seed(0))
    at = chats.is_answer
    probabilities = torch.from_numpy(np.exp(chats.top_logprobs[at].astype(np.float32)))
    logprobs = logits.log_softmax(1).gather(1, torch.from_numpy(chats.top_ids[at].astype(np.int64)))
    assert torch.allclose(distillation_loss(logits, lesson), -(probabilities * logprobs).sum(1).mean(), atol=1e-4)


def test_the_commonest_tokens_are_those_that_were_likeliest() -> None:
    chats = chat(1)
    chats.top_ids[:] = 7
    chats.top_ids[:, 1:] = 201
    assert commonest_tokens(chats, 4, 256).tolist() == [0, 1, 7, 201]


def test_a_round_ends_behind_the_first_token_that_was_not_guessed() -> None:
    said = [True, True, False, True, True, True, True, False, False]
    positions = positions_of([said], 3)
    # Rounds: 2 accepted and a rejection; 3 accepted and the bonus, which nobody guessed; a rejection; a rejection.
    assert positions.reached == [4, 2, 2]
    assert positions.accepted == [2, 2, 1]
    assert positions.rates == [0.5, 1.0, 0.5]


def test_openings_are_of_all_kinds() -> None:
    openings = [draw_opening(np.random.default_rng(seed)) for seed in range(300)]
    assert {KINDS[opening.kind] for opening in openings} == set(KINDS)
    assert all((opening.words == "") == (KINDS[opening.kind] == "free") for opening in openings)


def test_questions_that_are_measured_on_lie_here() -> None:
    questions = held_out()
    assert len(questions) == NUM_QUESTIONS
    assert {question.kind for question in questions} == set(KINDS)
    assert all(question.user for question in questions)
