"""What a step costs with every kind of product that this processor has, beside what reading memory takes.

`python -m benchmarks.kernels MODEL KIND` measures one kind, in a process of its own, and prints it as JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from llvmlite import binding
from numba import njit

from benchmarks.family.build import build_pair
from benchmarks.family.shape import find_shape
from benchmarks.family.steps import Texts
from benchmarks.page import machine, table, write_page
from services.common.sampling_params import SamplingParams
from services.engine.config import Device, Dtype, EngineConfig, Instructions, Weights
from services.engine.cpu.kernels import Ints
from services.engine.cpu.kinds import Kind, kinds
from services.engine.cpu.packed import kind_for
from services.engine.engine import Engine
from services.engine.sequence import Sequence as Text

_PAIR = "6-78"
_ROWS = (1, 4, 8, 16, 32)
_ROUNDS = 5
_PROMPT_TOKENS, _PROMPTS = 2048, 2
_READ_BYTES = 1 << 30
_MOST_FOR_EIGHT = 1.3
_LEAST_READ = {2: 0.85, 1: 0.75}
"""By bytes of a weight: what a plain step must reach of the speed of plain reading."""
_FEATURES = ("avx2", "avx512f", "avx512bf16", "avx512vnni", "amx-bf16", "amx-int8")


class Measured(NamedTuple):
    """One kind of product. Medians over rounds that follow each other."""

    kind: str
    milliseconds: dict[int, float]
    """Of a step, by its rows: one text, of which all rows but one are proposed tokens."""
    read: float
    """Bytes of weights that a plain step reads a second, relative to plain reading in the same round."""
    bytes_per_second: float
    """Of plain reading."""
    prompt_seconds: float

    @property
    def eight(self) -> float:
        """What a step of eight rows takes relative to a plain one."""
        return self.milliseconds[8] / self.milliseconds[1]


def run(work_dir: Path) -> list[Measured]:
    """Measures all kinds, one after the other. Takes some two minutes on two cores."""
    target = build_pair(find_shape(_PAIR), work_dir / "family" / _PAIR).target
    return [_in_a_process(target, kind) for kind in sorted(kinds())]


def holds(measured: Sequence[Measured]) -> bool:
    """Whether the kinds that engines take here keep their bounds."""
    held = [one for one in measured if Kind[one.kind] in taken()]
    return all(one.eight <= _MOST_FOR_EIGHT and one.read >= _LEAST_READ[_bytes(Kind[one.kind])] for one in held)


def write_kernels(measured: Sequence[Measured], folder: Path) -> Path:
    """Writes kernels.md into a folder and returns its path."""
    features = binding.get_host_cpu_features()
    found = ", ".join(name for name in _FEATURES if features.get(name))
    shape = find_shape(_PAIR)
    own = " and ".join(_name(kind) for kind in sorted(taken()))
    lines = [
        "# Products on the CPU",
        "",
        f"Written by `make bench`: {machine()}, with {found or 'none of the instructions that are made use of'}. The "
        f"target of the pair {_PAIR} (see [the family](../measuring.md)), {shape.target_weights / 1e6:.0f} M weights "
        "that a step reads, with every kind of product that this processor has, each in a process of its own. "
        f"By itself an engine takes {own} here; [why](../decisions/cpu-linears.md). "
        f"Steps are those of the whole engine, of one text behind 64 tokens of prompt; medians of {_ROUNDS} rounds.",
        "",
        f"**Reading** is the bytes of weights that a plain step reads a second relative to plain reading in the same "
        f"round: the fastest of several readers, two threads, 1 GiB that was written. At least "
        f"{_LEAST_READ[2]:g} for bfloat16 and {_LEAST_READ[1]:g} for 8 bits, and **8 / 1**, what a step of eight rows "
        f"takes relative to a plain one, at most {_MOST_FOR_EIGHT:g}, for {own}.",
        "",
        *table(
            ("kind", *(f"{rows} rows, ms" if rows > 1 else "1 row, ms" for rows in _ROWS), "8 / 1", "reading", "GB/s",
             f"prompt of {_PROMPT_TOKENS:,} tokens, s"),
            [
                (
                    _name(Kind[one.kind]), *(f"{one.milliseconds[rows]:.1f}" for rows in _ROWS), f"**{one.eight:.2f}**",
                    f"**{one.read:.2f}**", f"{one.bytes_per_second / 1e9:.1f}", f"{one.prompt_seconds:.1f}",
                )
                for one in measured
            ],
        ),
    ]  # fmt: skip
    return write_page(folder, "kernels", lines)


def measure(model: str, kind: Kind) -> Measured:
    """Measures one kind in this process."""
    engine = Engine(EngineConfig(model=model, device=Device.CPU, **settings_of(kind)))
    words = np.full(_READ_BYTES // 8, 1, np.int64)
    weights = find_shape(_PAIR).target_weights * _bytes(kind)
    steps, reads, speeds = [], [], []
    for _ in range(1 + _ROUNDS):  # The first is to warm up.
        speeds.append(_reading(words))
        steps.append(dict(Texts(engine, 1).measure([rows - 1 for rows in _ROWS])))
        reads.append(weights / steps[-1][1] / speeds[-1])
    milliseconds = {rows: 1e3 * statistics.median(step[rows] for step in steps[1:]) for rows in _ROWS}
    prompt = min(_prompt(engine, number) for number in range(_PROMPTS))
    return Measured(kind.name, milliseconds, statistics.median(reads[1:]), statistics.median(speeds[1:]), prompt)


def _in_a_process(model: str, kind: Kind) -> Measured:
    command = [sys.executable, "-m", "benchmarks.kernels", model, kind.name]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    said["milliseconds"] = {int(rows): value for rows, value in said["milliseconds"].items()}
    return Measured(**said)


def settings_of(kind: Kind) -> dict[str, object]:
    """Settings of an engine that takes this kind."""
    for dtype, weights, newest in product(
        (Dtype.FLOAT32, Dtype.FLOAT16, Dtype.BFLOAT16), (Weights.DTYPE, Weights.INT8), Instructions
    ):
        if kind_for(getattr(torch, dtype), newest, round_to_int8=weights is Weights.INT8) is kind:
            return {"dtype": dtype, "weights": weights, "instructions": newest}
    raise ValueError(f"no setting leads to {kind.name}")


def taken() -> set[Kind]:
    """The kinds that engines take here of a bfloat16 model, by itself and where it is rounded."""
    return {kind_for(torch.bfloat16, Instructions.AMX, round_to_int8=rounded) for rounded in (False, True)}


def _bytes(kind: Kind) -> int:
    """Bytes of a weight."""
    return 4 // kind.unit_inputs


def _name(kind: Kind) -> str:
    weights, _, instructions = kind.name.lower().partition("_")
    return f"{weights}, {instructions.upper() or 'portable'}"


@njit(nogil=True)
def _compiled(words: Ints) -> int:
    total = 0
    for word in words:
        total ^= word
    return total


def _reading(words: Ints) -> float:
    """Bytes a second: the fastest of several readers."""
    threads = os.cpu_count() or 1
    parts = np.array_split(words, threads)
    tensor = torch.from_numpy(words)
    with ThreadPoolExecutor(threads) as pool:
        readers: list[Callable[[], object]] = [
            tensor.sum,
            tensor.view(torch.float32).sum,
            lambda: list(pool.map(np.bitwise_or.reduce, parts)),
            lambda: list(pool.map(_compiled, parts)),
        ]
        return words.nbytes / min(_seconds(reader) for reader in readers)


def _prompt(engine: Engine, number: int) -> float:
    """Seconds from a prompt to its first token."""
    ids = [(7919 * at + 13 * number) % 8000 + 1 for at in range(_PROMPT_TOKENS)]
    text = Text(ids, len(ids), SamplingParams(temperature=0.0))
    engine.add(text)

    def compute() -> None:
        while text.num_uncomputed:
            engine.step()

    seconds = _seconds(compute)
    engine.remove(text)
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> int:
    """Measures one kind."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("kind", choices=[kind.name for kind in sorted(kinds())])
    given = parser.parse_args()
    sys.stdout.write(json.dumps(measure(given.model, Kind[given.kind])._asdict()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
