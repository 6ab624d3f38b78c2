"""The page of quality: what it says of two models is what transformers says of them."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.quality import Judge, Model, Report, Styled, write_quality
from models.assistant.styles import STYLES
from services.engine.config import Dtype

PROMPTS = [[5, 6, 7, 8], [90, 3, 17], [200, 201, 202, 203, 204]]


def rows_of(folder: str, text: list[int], num_prompt_tokens: int) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([text])).logits[0]
    return logits[num_prompt_tokens - 1 : -1].log_softmax(-1)


def test_a_change_is_what_transformers_says_of_both(target_folder: str, draft_folder: str, tmp_path: Path) -> None:
    plain, other = (Model(Path(folder), Dtype.FLOAT32) for folder in (target_folder, draft_folder))
    judge = Judge(plain, PROMPTS)
    itself = judge.change("itself", plain, judge.texts)
    assert (itself.same, itself.greedy, itself.distance) == (1, 1, pytest.approx(0, abs=1e-6))
    assert itself.perplexity == pytest.approx(judge.perplexity)
    change = judge.change("other", other, other.answers(PROMPTS))
    pairs = [(text, len(prompt)) for text, prompt in zip(judge.texts, PROMPTS, strict=True)]
    ours, theirs = (torch.cat([rows_of(folder, *pair) for pair in pairs]) for folder in (target_folder, draft_folder))
    said = torch.tensor([token for text, count in pairs for token in text[count:]])
    assert judge.num_tokens == len(said)
    assert ours.argmax(-1).equal(said)
    assert change.greedy == pytest.approx(float((theirs.argmax(-1) == said).float().mean()))
    assert change.distance == pytest.approx(float((ours.exp() * (ours - theirs)).sum(-1).mean()), rel=1e-3)
    assert change.perplexity == pytest.approx(float((-theirs.gather(1, said[:, None]).mean()).exp()), rel=1e-3)
    styles = [Styled(style, 0.0, 0.5, 0.95, "Arr,\nmatey!") for style in STYLES]
    report = Report(judge.num_tokens, judge.perplexity, "Why?", [itself, change], styles, {"of 1 bit": "too few"})
    assert report.holds
    page = write_quality(report, tmp_path).read_text()
    assert f"| other | {change.same:.0%} | {change.greedy:.1%} |" in page
    assert "Not served: of 1 bit. *too few.*" in page
    assert "- `pirate`: Arr, matey!" in page
    assert not report._replace(styles=[styles[0]._replace(adapted=0.5)]).holds
