"""What cheaper weights and adapters change in what the assistant says: beside the same model in float32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer

from benchmarks.page import machine, table, write_page
from models.assistant.adapting import ADAPTERS
from models.assistant.evaluation import NUM_TOKENS, answers
from models.assistant.held_out import held_out, held_out_prompts, prompt_of
from models.assistant.styles import STYLES, Style
from models.assistant.target import target_folder
from paceline.upload import CONFIG_NAME, WEIGHTS_NAME
from services.common.sampling_params import SamplingParams
from services.engine.config import Dtype, EngineConfig, Weights
from services.engine.engine import Engine
from services.engine.forward import Batch, Forward
from services.engine.lora import Lora
from services.engine.sequence import NO_SLOT
from services.engine.sequence import Sequence as Text
from services.model_server.adapter_files import read_adapter

NUM_QUESTIONS = 64
_SAMPLE = 4
"""The question whose answers are shown."""
STYLE_FLOOR = 0.8
_STEP_TOKENS = 1024
"""More than a prompt and its answer have: each is read in one step."""


class Change(NamedTuple):
    """What one way of running the model changes, over all answers."""

    name: str
    same: float
    """Share of the answers that are the same."""
    greedy: float
    """Share of the tokens of float32's answers that it would have said too, given what is before them."""
    distance: float
    """Mean Kullback-Leibler divergence from float32's distribution, in nats a token."""
    perplexity: float
    """On float32's answers."""


class Styled(NamedTuple):
    """How often answers are as an adapter is to make them."""

    style: Style
    without: float
    told: float
    """Without the adapter, when the model is told and shown how to answer."""
    adapted: float
    sample: str


class Report(NamedTuple):
    """Everything that one run measured."""

    num_tokens: int
    perplexity: float
    """Of float32 on its own answers."""
    asked: str
    """The question of the samples."""
    changes: list[Change]
    styles: list[Styled]
    refused: dict[str, str]
    """What the engine does not serve, and why."""

    @property
    def holds(self) -> bool:
        """Whether every adapter does what it is for."""
        return all(style.adapted >= STYLE_FLOOR for style in self.styles)


class _Overheard:
    """A forward whose logits are kept."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self.heard: list[torch.Tensor] = []

    @property
    def identity(self) -> str:
        return self._forward.identity

    @property
    def adapters(self) -> Lora | None:
        return self._forward.adapters

    def run(self, batch: Batch) -> torch.Tensor:
        logits = self._forward.run(batch)
        self.heard.append(logits.float().log_softmax(-1))
        return logits

    def hurry(self, wanted: bool) -> None:
        self._forward.hurry(wanted)


class Model:
    """A model in one way of running it."""

    def __init__(
        self, folder: Path, dtype: Dtype, weights: Weights = Weights.DTYPE, adapter: Path | None = None
    ) -> None:
        config = EngineConfig(
            model=str(folder), dtype=dtype, weights=weights, max_step_tokens=_STEP_TOKENS,
            max_adapters=None if adapter is None else 1,
        )  # fmt: skip
        self._engine = Engine(config)
        self._slot = NO_SLOT
        if adapter is not None:
            files = [(adapter / name).read_bytes() for name in (CONFIG_NAME, WEIGHTS_NAME)]
            self._slot = 0
            self._engine.install_adapter(self._slot, read_adapter(files[0], files[1], self._engine.facts))

    def answers(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Greedy answers, prompts before them."""
        return answers(self._engine, prompts, 0.0, adapter_slot=self._slot)

    def reads(self, text: Sequence[int], num_prompt_tokens: int) -> torch.Tensor:
        """Log-probabilities [answer, vocab] where each token of the answer stands."""
        runner = self._engine.runner
        forward, runner.forward = runner.forward, (overheard := _Overheard(runner.forward))
        read = Text(text[:-1], num_prompt_tokens, SamplingParams(temperature=0.0), adapter_slot=self._slot)
        read.first_logits = num_prompt_tokens - 1
        try:
            self._engine.add(read)
            self._engine.step()
        finally:
            self._engine.remove(read)
            runner.forward = forward
        (heard,) = overheard.heard
        if len(heard) != len(text) - num_prompt_tokens:
            raise RuntimeError(f"{len(heard)} rows for an answer of {len(text) - num_prompt_tokens} tokens")
        return heard


class Judge:
    """What float32 says, and how far others are from it."""

    def __init__(self, model: Model, prompts: Sequence[Sequence[int]]) -> None:
        self._prompts = prompts
        self.texts = model.answers(prompts)
        """Its answers, prompts before them."""
        self._heard = [model.reads(*each) for each in self._pairs()]
        self.num_tokens = sum(map(len, self._heard))
        self.perplexity = self._perplexity(self._heard)

    def change(self, name: str, model: Model, texts: Sequence[Sequence[int]]) -> Change:
        """What a model changes that gave these answers."""
        heard = [model.reads(*each) for each in self._pairs()]
        distance = agreed = 0.0
        for ours, theirs in zip(self._heard, heard, strict=True):
            distance += float((ours.exp() * (ours - theirs)).sum())
            agreed += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
        same = sum(list(a) == b for a, b in zip(texts, self.texts, strict=True)) / len(texts)
        total = self.num_tokens
        return Change(name, same, agreed / total, distance / total, self._perplexity(heard))

    def _pairs(self) -> list[tuple[list[int], int]]:
        return [(text, len(prompt)) for text, prompt in zip(self.texts, self._prompts, strict=True)]

    def _perplexity(self, heard: Sequence[torch.Tensor]) -> float:
        found = [
            rows.gather(1, torch.tensor(text[count:])[:, None])
            for rows, (text, count) in zip(heard, self._pairs(), strict=True)
        ]
        return float((-torch.cat(found).mean()).exp())


def run() -> Report:
    """Measures everything. Takes some five minutes on two cores."""
    folder = target_folder()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    questions = held_out()[:NUM_QUESTIONS]
    prompts = held_out_prompts(tokenizer)[:NUM_QUESTIONS]
    plain = Model(folder, Dtype.FLOAT32)
    judge = Judge(plain, prompts)
    changes: list[Change] = []
    refused: dict[str, str] = {}
    for name, dtype, weights in (
        ("bfloat16", Dtype.BFLOAT16, Weights.DTYPE),
        ("bfloat16, weights of 8 bits", Dtype.BFLOAT16, Weights.INT8),
    ):
        try:
            model = Model(folder, dtype, weights)
        except ValueError as error:
            refused[name] = str(error)
            continue
        changes.append(judge.change(name, model, model.answers(prompts)))
    styles: list[Styled] = []
    for style in STYLES:
        model = Model(folder, Dtype.FLOAT32, adapter=ADAPTERS / style.name)
        adapted = model.answers(prompts)
        changes.append(judge.change(f"float32, adapter `{style.name}`", model, adapted))
        told = [prompt_of(tokenizer, style.told(question.user)) for question in questions]
        without, with_words, with_adapter = (
            said(tokenizer, texts, asked)
            for texts, asked in ((judge.texts, prompts), (plain.answers(told), told), (adapted, prompts))
        )
        shares = [_share(style, texts) for texts in (without, with_words, with_adapter)]
        styles.append(Styled(style, shares[0], shares[1], shares[2], with_adapter[_SAMPLE]))
    return Report(judge.num_tokens, judge.perplexity, questions[_SAMPLE].user, changes, styles, refused)


def said(tokenizer: Any, texts: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]]) -> list[str]:
    """What stands behind prompts."""
    return [
        str(tokenizer.decode(text[len(prompt) :], skip_special_tokens=True))
        for text, prompt in zip(texts, prompts, strict=True)
    ]


def _share(style: Style, texts: Sequence[str]) -> float:
    return sum(map(style.fits, texts)) / len(texts)


def write_quality(report: Report, folder: Path) -> Path:
    """Writes quality.md into a folder and returns its path."""
    lines = [
        "# What cheaper weights and adapters change in what the assistant says",
        "",
        f"Written by `python -m benchmarks quality`: {machine()}. SmolLM2-135M-Instruct, greedy answers of up to "
        f"{NUM_TOKENS} tokens to {NUM_QUESTIONS} held-out questions, {report.num_tokens} tokens in all, beside those "
        "of the same model in float32. All but the first column are on float32's answers: a greedy answer that differs "
        "in one token goes on differently, so the first says little of how far apart two models are.",
        "",
        *table(
            ("", "same answers", "same greedy tokens", "distance, nats a token", "perplexity"),
            [
                ("float32", "100%", "100%", "0", f"{report.perplexity:.3f}"),
                *(
                    (c.name, f"{c.same:.0%}", f"{c.greedy:.1%}", f"{c.distance:.4f}", f"{c.perplexity:.3f}")
                    for c in report.changes
                ),
            ],
        ),
        *(line for name, why in report.refused.items() for line in (f"Not served: {name}. *{why}.*", "")),
        "Distance is the mean Kullback-Leibler divergence from float32's distribution.",
        "",
        "## Adapters",
        "",
        "Share of the answers that are of the adapter's kind ([how that is told](../../models/assistant/styles.py)): "
        "without it, without it when the model is told and shown how to answer, and with it, told nothing. The floor "
        f"of the last is {STYLE_FLOOR:.0%}.",
        "",
        *table(
            ("adapter", "", "without", "told", "with"),
            [(f"`{s.style.name}`", s.style.about, f"{s.without:.0%}", f"{s.told:.0%}", f"**{s.adapted:.0%}**")
             for s in report.styles],
        ),
        f"Asked: *{_in_one_line(report.asked)}*",
        "",
        *(f"- `{s.style.name}`: {_in_one_line(s.sample)}" for s in report.styles),
        "",
    ]  # fmt: skip
    return write_page(folder, "quality", lines)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())
