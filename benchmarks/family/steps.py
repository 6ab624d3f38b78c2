"""What a step of a model takes, measured in this process with nothing else running: what a pair's limit is made of.

`python -m benchmarks.family.steps MODEL` prints it as JSON. A process of its own has OpenMP threads of its own.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence as Seq

from paceline.cli.bench.limit import StepSeconds, interpolated
from services.common.sampling_params import SamplingParams
from services.engine.config import EngineConfig
from services.engine.engine import Engine
from services.engine.sequence import Sequence

_PROMPT_TOKENS = 64
_MOST_ROWS = 256
_DRAFTED = (0, 1, 2, 3, 4, 6, 8, 12, 16)
_REPEATS = 7

StepTimes = dict[int, list[tuple[int, float]]]
"""By number of sequences: (rows, seconds), rows ascending."""


def measure_steps(config: EngineConfig, streams: Seq[int], *, is_draft: bool) -> StepTimes:
    """Median times of steps of so many sequences that verify 0 to 16 proposed tokens each; of a draft, of one row each.

    The sequences are some 64 tokens long.
    """
    engine = Engine(config.model_copy(update={"is_draft": is_draft}))
    return {count: Texts(engine, count).measure((0,) if is_draft else _DRAFTED) for count in streams}


def seconds_of(times: StepTimes, num_streams: int) -> StepSeconds:
    """Step times at this number of sequences."""
    return interpolated(times[num_streams])


class Texts:
    """Sequences whose prompts are computed."""

    def __init__(self, engine: Engine, count: int) -> None:
        self._engine = engine
        self._sequences = [
            Sequence([1 + place] * _PROMPT_TOKENS, _PROMPT_TOKENS, SamplingParams(temperature=0.0, seed=place))
            for place in range(count)
        ]
        for sequence in self._sequences:
            engine.add(sequence)
        while any(sequence.num_uncomputed for sequence in self._sequences):
            self._step()

    def measure(self, drafted: Seq[int]) -> list[tuple[int, float]]:
        """(rows, seconds) for each number of proposed tokens; then the sequences are gone."""
        count = len(self._sequences)
        sizes = [number for number in drafted if count * (number + 1) <= _MOST_ROWS]
        found = [(count * (size + 1), self._median(size)) for size in sizes]
        for sequence in self._sequences:
            self._engine.remove(sequence)
        return found

    def _median(self, num_drafted: int) -> float:
        times = []
        for _ in range(_REPEATS):
            for sequence in self._sequences:
                sequence.token_ids.append(1)
                sequence.first_logits = len(sequence) - 1
                sequence.num_settled = len(sequence)
                sequence.token_ids.extend([2] * num_drafted)
            started = time.perf_counter()
            self._step()
            times.append(time.perf_counter() - started)
            for sequence in self._sequences:
                sequence.truncate(len(sequence) - num_drafted)
        return statistics.median(times[1:])

    def _step(self) -> None:
        self._engine.step()


def main() -> int:
    """Measures one model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family.steps", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--streams", type=int, nargs="+", required=True)
    parser.add_argument("--draft", action="store_true")
    given = parser.parse_args()
    config = EngineConfig(model=given.model, num_threads=given.threads)
    sys.stdout.write(json.dumps(measure_steps(config, given.streams, is_draft=given.draft)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
