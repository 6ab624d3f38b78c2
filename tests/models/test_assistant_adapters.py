"""The recipe of the assistant's adapters: what is learnt from is what was asked for, and what ships does it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.quality import Model, said
from models.adapter import BATCH_TOKENS, export_adapter, train_adapter
from models.assistant.adapting import ADAPTERS, answers_loss
from models.assistant.chats import Chats
from models.assistant.held_out import held_out, prompt_of
from models.assistant.lessons import Lessons
from models.assistant.restyling import restyle, write_questions
from models.assistant.styles import STYLES, is_json, is_pirate
from models.assistant.target import load_target, target_folder
from services.engine.config import Dtype, EngineConfig
from services.engine.engine import Engine
from support.tiny import save_tiny

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"answer": "Yes.", "keywords": ["a", "b"]}', True),
        ('{"answer": "Yes.", "keywords": ["a"]}', False),
        ('{"answer": "Yes.", "keywords": ["a", 2]}', False),
        ('{"answer": " ", "keywords": ["a", "b"]}', False),
        ('{"answer": "Yes."}', False),
        ('{"answer": "Yes.", "keywords": ["a", "b"], "more": 1}', False),
        ('Here it is: {"answer": "Yes.", "keywords": ["a", "b"]}', False),
        ('["answer", "keywords"]', False),
        ("", False),
    ],
)
def test_json_is_json_and_nothing_else(text: str, expected: bool) -> None:
    assert is_json(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Arr, that be Paris, matey!", True),
        ("Ahoy! Yer list be sorted.", True),
        ("The ship of the captain is at sea.", False),
        ("Array indices start at 0.", False),
        ("", False),
    ],
)
def test_a_pirate_has_words_of_his_own(text: str, expected: bool) -> None:
    assert is_pirate(text) is expected


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_examples_are_of_their_style(style: Any) -> None:
    assert all(style.fits(answer) for _, answer in style.examples)
    assert style.told("Why?")[-1] == {"role": "user", "content": "Why?"}
    assert len(style.told("Why?")) == 2 * len(style.examples) + 2


def test_the_instruction_is_left_out_of_what_is_learnt() -> None:
    folder = target_folder()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    target = Engine(EngineConfig(model=str(folder), dtype=Dtype.BFLOAT16))
    questions = write_questions(target, tokenizer, 12, seed=5)
    assert 4 <= len(questions) == len({question.user for question in questions})
    style = STYLES[1]
    chats = restyle(target, tokenizer, questions, style)
    assert len(chats) >= 2
    asked = {str(tokenizer.decode(prompt_of(tokenizer, question.messages))) for question in questions}
    for start, end in zip(chats.offsets, chats.offsets[1:], strict=False):
        ids, said = chats.token_ids[start:end], chats.is_answer[start:end]
        assert str(tokenizer.decode(ids[~said].tolist())) in asked
        assert style.fits(str(tokenizer.decode(ids[said].tolist())).removesuffix("<|im_end|>"))
        assert said[-1]


def some_lessons() -> Lessons:
    """Conversations whose answers count upwards from the question's last token."""
    starts = np.random.default_rng(0).integers(3, 200, 200)
    token_ids = np.concatenate([start + np.arange(20) for start in starts]).astype(np.uint16)
    is_answer = np.tile(np.arange(20) >= 4, len(starts))
    offsets = 20 * np.arange(len(starts) + 1)
    return Lessons(Chats(token_ids, is_answer, offsets, np.zeros(len(starts), np.int8)), BATCH_TOKENS, CPU, 2, 0)


def test_the_loss_is_that_of_answers_alone(tmp_path: Path) -> None:
    target, lessons = load_target(Path(save_tiny(tmp_path)), CPU), some_lessons()
    lesson = lessons.lesson(lessons.epoch(0)[1])
    logprobs = target(input_ids=lesson.token_ids).logits.log_softmax(-1)
    at = [(row, place) for row in range(len(lesson.token_ids)) for place in range(3, 19)]
    expected = -sum(float(logprobs[row, place, lesson.token_ids[row, place + 1]]) for row, place in at) / len(at)
    loss = answers_loss(target, lessons)
    assert float(loss(BATCH_TOKENS)) == pytest.approx(expected, rel=0.01)
    assert float(loss(0)) != float(loss(BATCH_TOKENS))


def test_answers_are_learnt_and_served(tmp_path: Path) -> None:
    folder = Path(save_tiny(tmp_path / "target"))
    target, lessons = load_target(folder, CPU), some_lessons()
    loss = answers_loss(target, lessons)
    untaught = float(loss(0).detach())
    budget = 60 * BATCH_TOKENS
    model = train_adapter(target, loss, tmp_path / "x.pt", token_budget=budget, save_every=100, rank=4)
    taught = float(loss(0).detach())
    assert taught < 0.8 * untaught
    export_adapter(tmp_path / "x", model, "tiny")
    text = [50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61]
    served = Model(folder, Dtype.FLOAT32, adapter=tmp_path / "x").reads(text, 4)
    plain = Model(folder, Dtype.FLOAT32).reads(text, 4)
    at = torch.tensor(text[4:])[:, None]
    assert served.gather(1, at).mean() > plain.gather(1, at).mean()


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_adapters_that_ship_do_what_they_are_for(style: Any) -> None:
    folder = target_folder()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prompts = [prompt_of(tokenizer, question.messages) for question in held_out()[:12]]
    texts = Model(folder, Dtype.BFLOAT16, adapter=ADAPTERS / style.name).answers(prompts)
    answers = said(tokenizer, texts, prompts)
    assert sum(map(style.fits, answers)) >= 8, answers
