"""How long an engine takes to start with the trial of its model and without, and what cannot be served to be refused.

python -m benchmarks.starting FOLDER [untried] starts an engine and says how many seconds that took.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.family.build import build_pair
from benchmarks.family.shape import find_shape
from benchmarks.heavy import build_heavy
from benchmarks.page import machine, table, write_page

_REPEATS = 5
_MOST_TIMES, _MOST_SECONDS, _REFUSAL_SECONDS = 1.15, 2.0, 3.0
_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
_T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}


class Start(NamedTuple):
    """Median seconds until an engine can be asked."""

    model: str
    untried: float
    first: float
    again: float

    @property
    def holds(self) -> bool:
        """Whether the trial takes little beside the start, or little at all."""
        return self.first <= max(_MOST_TIMES * self.untried, self.untried + _MOST_SECONDS)


class Refusal(NamedTuple):
    """What `paceline up` says of a model that cannot be served, and how soon."""

    case: str
    seconds: float
    said: str

    @property
    def holds(self) -> bool:
        """Whether it is one line, said soon."""
        return self.seconds <= _REFUSAL_SECONDS and len(self.said.splitlines()) == 1


def run(target: str, work_dir: Path) -> tuple[list[Start], list[Refusal]]:
    """Measures everything. Takes some three minutes on two cores."""
    pair = build_pair(find_shape("6-78"), work_dir / "family" / "6-78")
    models = {
        "the heavy target": build_heavy(target, work_dir / "heavy"),
        "a Llama of 188 million parameters": pair.target,
    }
    return [_start(name, folder) for name, folder in models.items()], _refusals(target)


def write_starting(starts: Sequence[Start], refusals: Sequence[Refusal], folder: Path) -> Path:
    """Writes starting.md into a folder and returns its path."""
    lines = [
        "# Starting, and refusing to",
        "",
        f"Written by `make bench`: {machine()}. Medians of {_REPEATS} starts of an engine, imports included, in turns: "
        "its model is tried beside its own forward, was found equal before, or is not tried at all (there is no such "
        f"setting). The first start may take {_MOST_TIMES:g} times as long as one without the trial, or "
        f"{_MOST_SECONDS:g} s longer.",
        "",
        *table(
            ("model", "without", "first start", "later starts", "first / without"),
            [
                (s.model, f"{s.untried:.2f} s", f"{s.first:.2f} s", f"{s.again:.2f} s", _shown(s.first / s.untried, s))
                for s in starts
            ],
        ),
        f"What `paceline up --model` says of what cannot be served: one line within {_REFUSAL_SECONDS:g} s.",
        "",
        *table(
            ("model", "seconds", "said"),
            [(r.case, f"{r.seconds:.2f}" + ("" if r.holds else " (missed)"), r.said) for r in refusals],
        ),
    ]
    return write_page(folder, "starting", lines)


def _shown(ratio: float, start: Start) -> str:
    return f"**{ratio:.2f}**" + ("" if start.holds else " (missed)")


def _start(name: str, model: str) -> Start:
    untried, first, again = [], [], []
    with tempfile.TemporaryDirectory() as cache:
        _seconds_of(model, cache, "untried")  # What is compiled and read once is so for all.
        for _ in range(_REPEATS):
            untried.append(_seconds_of(model, cache, "untried"))
            first.append(_seconds_of(model, cache))
            again.append(_seconds_of(model, cache))
            shutil.rmtree(Path(cache) / "paceline" / "probes")
    return Start(name, *(statistics.median(seconds) for seconds in (untried, first, again)))


def _seconds_of(model: str, cache: str, *how: str) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.starting", model, *how]
    subprocess.run(command, check=True, env={**os.environ, "XDG_CACHE_HOME": cache})
    return time.perf_counter() - started


def _refusals(target: str) -> list[Refusal]:
    with tempfile.TemporaryDirectory() as folder:
        models = {"a folder that is not there": "./my-target", "a hub id without network": "some-one/some-model"}
        for case, files in _FOLDERS.items():
            models[case] = _write(Path(folder) / case.replace(" ", "-"), files)
        models["no tokenizer"] = str(Path(folder) / "no-tokenizer")
        shutil.copytree(target, models["no tokenizer"], ignore=shutil.ignore_patterns("token*", "vocab*", "merges*"))
        return [_refuse(case, model, folder) for case, model in models.items()]


_FOLDERS: dict[str, dict[str, Any]] = {
    "an adapter": {"adapter_config.json": {"base_model_name_or_path": "org/base"}, "adapter_model.safetensors": {}},
    "GGUF": {"config.json": _LLAMA, "model-q4.gguf": {}},
    **{
        method: {"config.json": {**_LLAMA, "quantization_config": {"quant_method": method}}, "model.safetensors": {}}
        for method in ("awq", "gptq", "bitsandbytes")
    },
    "an encoder and a decoder": {"config.json": _T5, "model.safetensors": {}},
}


def _write(folder: Path, files: dict[str, Any]) -> str:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return str(folder)


def _refuse(case: str, model: str, folder: str) -> Refusal:
    started = time.perf_counter()
    # Nobody listens at the discard port.
    environment = {**os.environ, "HF_HOME": folder, "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "paceline", "up", "--model", model]
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)
    said = (ended.stdout + ended.stderr).strip().replace(folder, "...")
    return Refusal(case, time.perf_counter() - started, said)


def _start_one(model: str, *how: str) -> None:
    from services.engine import forwards
    from services.engine.config import Device, EngineConfig
    from services.engine.engine import Engine

    if "untried" in how:
        setattr(forwards, "check_model_agrees", lambda _loaded: None)  # noqa: B010  It is no setting.
    Engine(EngineConfig(model=model, device=Device.CPU))


if __name__ == "__main__":
    _start_one(*sys.argv[1:])
