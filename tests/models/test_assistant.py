"""The recipe of the assistant's draft: what is trained is what is served, and what is counted is what happened."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.assistant.chats import Chats, load_chats, save_chats, split, without
from models.assistant.decoding import Decoder
from models.assistant.draft import Draft, commonest_tokens, matching_scales
from models.assistant.evaluation import positions_of
from models.assistant.exporting import export
from models.assistant.held_out import NUM_QUESTIONS, held_out
from models.assistant.lessons import Judged, Lessons, agreement, distillation_loss, judged
from models.assistant.openings import KINDS, draw_opening
from models.assistant.target import load_target, target_folder
from models.assistant.training import BATCH_TOKENS, Shape, Trainer, calm, guesses, train
from models.assistant.writing import Writer
from services.engine.graft_assembly import assemble
from support.tiny import save_tiny, save_tokenizer

CPU = torch.device("cpu")
LAYERS = (0, 2, 3)
HEAD = torch.tensor([2, 5, 9, 31, 77, 120, 121, 200])
END = 2


def some_chats(*lengths: int) -> Chats:
    """Conversations of random tokens of which the second half is an answer."""
    random = np.random.default_rng(len(lengths))
    is_answer = np.concatenate([np.arange(length) >= length // 2 for length in lengths])
    kinds = (np.arange(len(lengths)) % 6).astype(np.int8)
    return Chats(random.integers(3, 256, sum(lengths)).astype(np.uint16), is_answer, np.cumsum([0, *lengths]), kinds)


def test_what_is_trained_is_what_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "target"
    save_tiny(folder, num_hidden_layers=4)
    save_tokenizer(folder)
    target = load_target(folder, CPU)
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    scales = matching_scales(target, ids, LAYERS)
    draft = Draft(target, HEAD, scales, LAYERS, rank=12)
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
    target = load_target(Path(save_tiny(tmp_path, num_hidden_layers=3)), CPU)
    scales = matching_scales(target, torch.arange(48).reshape(2, 24), (0, 1, 2))
    assert torch.allclose(scales, torch.ones(3), atol=1e-4)


def test_conversations_are_kept_as_they_are(tmp_path: Path) -> None:
    chats = some_chats(40, 30, 50)
    save_chats(tmp_path / "chats.npz", chats)
    kept = load_chats(tmp_path / "chats.npz")
    assert all(np.array_equal(got, expected) for got, expected in zip(kept, chats, strict=True))
    second = kept.take(np.array([1]))
    assert second.token_ids.tolist() == chats.token_ids[40:70].tolist()
    assert second.offsets.tolist() == [0, 30]


def texts_of(chats: Chats) -> set[bytes]:
    return {chats.token_ids[a:b].tobytes() for a, b in zip(chats.offsets, chats.offsets[1:], strict=False)}


def test_what_is_held_out_is_never_learnt() -> None:
    learnt, kept_back = split(some_chats(*range(30, 430)))
    assert len(learnt) + len(kept_back) == 400
    assert 0 < len(kept_back) < 30
    assert not texts_of(learnt) & texts_of(kept_back)


def test_conversations_with_questions_that_are_measured_on_are_left_out() -> None:
    chats = some_chats(40, 30, 50)
    begins = chats.token_ids[40:52].tolist()
    assert len(texts_of(chats) - texts_of(without(chats, [begins, [1, 2, 3]]))) == 1
    assert len(without(chats, [begins])) == 2


def test_a_lesson_asks_for_answers_alone() -> None:
    chats = some_chats(*range(30, 130))
    lessons = Lessons(chats, 4096, CPU, END, 0)
    assert sorted(number for batch in lessons.epoch(0) for number in batch) == list(range(100))
    assert [batch.tolist() for batch in lessons.epoch(0)] != [batch.tolist() for batch in lessons.epoch(1)]
    lesson = lessons.lesson(np.array([3, 4]))
    assert lesson.token_ids.numel() <= BATCH_TOKENS
    for row, number in enumerate((3, 4)):
        text = chats.take(np.array([number]))
        length = len(text.token_ids)
        assert lesson.token_ids[row, :length].tolist() == text.token_ids.tolist()
        assert lesson.token_ids[row, length:].tolist() == [END] * (34 - length)
        assert lesson.wanted[row].nonzero().flatten().tolist() == (np.flatnonzero(text.is_answer) - 1).tolist()


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(ValueError, match="no conversation has 16 tokens: have more written"):
        Lessons(some_chats(8, 9), 4096, CPU, END, 0)


def test_the_target_is_asked_for_what_the_head_has(tmp_path: Path) -> None:
    target = load_target(Path(save_tiny(tmp_path)), CPU)
    lesson = Lessons(some_chats(40, 30), 4096, CPU, END, 0).lesson(np.array([0, 1]))
    thought = judged(target, lesson, HEAD)
    logits = target(input_ids=lesson.token_ids).logits[lesson.wanted]
    assert torch.allclose(thought.probabilities, logits.softmax(1)[:, HEAD], atol=1e-6)
    picks = logits.argmax(1)
    assert (thought.columns == -1).equal(~torch.isin(picks, HEAD))
    there = thought.columns >= 0
    assert HEAD[thought.columns[there]].equal(picks[there])


def test_the_loss_is_the_cross_entropy_of_what_the_head_has_and_of_the_picks() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 8, generator=generator)
    probabilities = 0.9 * torch.randn(5, 8, generator=generator).softmax(1)
    columns = torch.tensor([1, -1, 7, 3, -1])
    logprobs = logits.log_softmax(1)
    soft, hard = -(probabilities * logprobs).sum(1).mean(), -logprobs[[0, 2, 3], [1, 7, 3]].mean()
    assert torch.allclose(distillation_loss(logits, Judged(probabilities, columns)), (soft + hard) / 2, atol=1e-5)
    said = torch.nn.functional.one_hot(torch.tensor([1, 0, 7, 2, 0]), 8).float()
    assert float(agreement(said, Judged(probabilities, columns))) == pytest.approx(2 / 5)


def test_it_learns(tmp_path: Path) -> None:
    target = load_target(Path(save_tiny(tmp_path, num_hidden_layers=4)), CPU)
    lessons = Lessons(some_chats(*[40] * 20), 256, CPU, END, 0)
    scales = matching_scales(target, lessons.lesson(np.array([0, 1])).token_ids, LAYERS)
    trainer = Trainer(Draft(target, HEAD, scales, LAYERS, rank=12), Shape(LAYERS, 12))
    lesson = lessons.lesson(lessons.epoch(9)[0])
    thought = judged(target, lesson, HEAD)

    @torch.no_grad()
    def loss() -> float:
        return float(distillation_loss(guesses(trainer.draft, lesson), thought))

    untaught = loss()
    calm(trainer.draft, lesson, thought)
    calmed = loss()
    assert calmed <= untaught
    assert train(target, [trainer], lessons, 4.0) > 1000
    assert loss() < calmed
    trainer.save(tmp_path)
    kept = torch.load(tmp_path / "0-2-3-rank-12.pt", weights_only=True)
    assert kept["layers"] == list(LAYERS)
    assert kept["draft"].keys() == trainer.draft.state_dict().keys()
    assert Shape.parse("0,2,3:12") == trainer.shape


def test_texts_at_places_of_their_own_are_read_as_one_by_one(tmp_path: Path) -> None:
    target = load_target(Path(save_tiny(tmp_path)), CPU)
    texts = torch.randint(0, 256, (2, 70), generator=torch.Generator().manual_seed(1))
    decoder, late = Decoder(target, 2, 80), 9
    rows: list[list[torch.Tensor]] = [[], []]
    for step in range(70 + late):
        places = torch.tensor([min(step, 69), max(step - late, 0)])
        logits = decoder.step(texts[[0, 1], places], places, step + 1)
        for row, is_new in ((0, step < 70), (1, step >= late)):
            rows[row] += [logits[row]] * is_new
    for row in range(2):
        assert torch.allclose(torch.stack(rows[row]), target(input_ids=texts[row : row + 1]).logits[0], atol=1e-4)


def test_conversations_are_turns_that_the_target_wrote() -> None:
    folder = target_folder()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    chats = Writer(load_target(folder, CPU), tokenizer, 4, seed=3).write(96)
    assert len(chats) >= 4
    assert len(chats.token_ids) == 4 * 96
    for start, end in zip(chats.offsets, chats.offsets[1:], strict=False):
        ids, said = chats.token_ids[start:end].tolist(), chats.is_answer[start:end]
        text, answer = str(tokenizer.decode(ids)), str(tokenizer.decode(np.array(ids)[said].tolist()))
        assert text.startswith("<|im_start|>system\n")
        _, _, behind = text.partition("<|im_start|>assistant\n")
        assert behind.startswith(answer.partition("<|im_end|>")[0])
        assert ("<|im_start|>assistant\n" in text) or not answer
    again = Writer(load_target(folder, CPU), tokenizer, 4, seed=3).write(24)
    assert again.token_ids[:24].tolist() == chats.token_ids[:24].tolist()


def test_the_commonest_tokens_are_those_that_were_said_most_often() -> None:
    chats = some_chats(40)
    chats.token_ids[:20], chats.token_ids[20:] = 9, 7
    chats.token_ids[25:28] = 201
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
