"""Every causal type of the installed transformers, tiny and random, beside transformers itself: `make sweep`.

python -m support.sweep [TYPE ...] prints a line a type; without types it also writes docs/models.md.
"""

import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from services.common.checkpoint import CheckpointError, check_model
from support.driver import add, append, generate, make_engine
from support.every_type import VOCAB_SIZE, causal_types, load, save_tiny_of

NUM_TOKENS = 10
LENGTHS = (4, 37, 61)
NEIGHBOUR = 200


class Found(NamedTuple):
    """What came of a type."""

    verdict: str
    """"equal", "refused", "differs", or "not tiny" for a type of which no tiny model could be made here."""
    reason: str = ""


def prompts() -> list[list[int]]:
    """Texts of several lengths."""
    return [[(31 * at * at + 17 * length) % (VOCAB_SIZE - 3) + 3 for at in range(length)] for length in LENGTHS]


def try_type(model_type: str) -> Found:
    """Whether a tiny model of this type gives transformers' greedy tokens alone, in chunks, and beside others."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_tiny_of(model_type, folder)
            reference = load(folder)
            expected = [greedy(reference, prompt) for prompt in prompts()]
        except Exception as error:  # It is the type's own code that does not take these sizes, or takes more than text.
            return _refused_at_once(model_type, folder) or Found("not tiny", _in_a_line(error))
        try:
            return _compare(folder, expected)
        except CheckpointError as error:
            return Found("refused", str(error).replace(folder, "it"))
        except Exception as error:  # A model may be refused, but in no other way.
            return Found("differs", _in_a_line(error))


def _refused_at_once(model_type: str, folder: str) -> Found | None:
    """What is said of a type before anything is loaded."""
    try:
        CONFIG_MAPPING[model_type]().save_pretrained(folder)
        (Path(folder) / "model.safetensors").touch()
        check_model(folder)
    except CheckpointError as error:
        return Found("refused", str(error).replace(folder, "it"))
    except Exception:  # Its own default configuration is none that it takes.
        return None
    return None


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """The likeliest tokens behind a prompt, each from a forward of all before it: no cache takes part."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(NUM_TOKENS):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def _compare(folder: str, expected: list[list[int]]) -> Found:
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "alone": lambda: [generate(engine, [prompt], NUM_TOKENS)[0] for prompt in prompts()],
        "in chunks, batched": lambda: generate(engine, prompts(), NUM_TOKENS),
        "beside a long neighbour": lambda: _beside(engine),
    }
    engine = make_engine(folder, max_step_tokens=512, max_context_tokens=400)
    for name, way in ways.items():
        if name == "in chunks, batched":
            engine = make_engine(folder, max_step_tokens=16, max_context_tokens=400)
        elif name == "beside a long neighbour":
            engine = make_engine(folder, max_step_tokens=512, max_context_tokens=400)
        if way() != expected:
            return Found("differs", name)
    return Found("equal")


def _beside(engine: Any) -> list[list[int]]:
    """All texts while a long one is computed."""
    add(engine, [(at * 7) % (VOCAB_SIZE - 3) + 3 for at in range(NEIGHBOUR)])
    texts = [add(engine, prompt) for prompt in prompts()]
    while any(len(text) < text.num_prompt_tokens + NUM_TOKENS for text in texts):
        for result in engine.step():
            sequence = result.sequence
            append(sequence, result.token_ids[-1])
            if sequence in texts and len(sequence) == sequence.num_prompt_tokens + NUM_TOKENS:
                engine.remove(sequence)
    return [text.token_ids[text.num_prompt_tokens :] for text in texts]


def page(found: dict[str, Found]) -> str:
    """The table as Markdown."""
    counts = Counter(each.verdict for each in found.values())
    lines = [
        "# Which models give the tokens of `transformers`",
        "",
        f"Each causal type of transformers {version('transformers')} was made tiny with random weights and asked for",
        "greedy tokens in float32: alone, batched in chunks of 16, and beside a long neighbour. `make sweep` writes",
        "this page. A type that is not equal is refused when it is loaded, with the sentence that stands here; every",
        "model is tried in a like way on its own weights before it is served.",
        "[Quantized checkpoints](quantized.md) have a page of their own.",
        "",
        f"Equal: {counts['equal']} of {len(found)}. Refused: {counts['refused']}. Not made tiny here, so not known: "
        f"{counts['not tiny']}. Different: {counts['differs']}.",
        "",
        "| type | verdict | reason |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {each.verdict} | {each.reason.replace('|', '/')} |" for name, each in found.items()]
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> int:
    """Tries types and says how it went; 1 when one differs."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    found: dict[str, Found] = {}
    for name in names or causal_types():
        found[name] = try_type(name)
        print(name, *found[name], flush=True)  # noqa: T201  It is what the command is for.
    if not names:
        (Path(__file__).resolve().parents[2] / "docs" / "models.md").write_text(page(found))
    return int(any(each.verdict == "differs" for each in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
