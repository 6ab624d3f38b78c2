"""What audits found, by model: counted since the gateway began, and measured."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from opentelemetry.metrics import CallbackOptions, Observation

from services.common.telemetry import meter


class Fate(StrEnum):
    """What became of a sequence that was to be computed once more."""

    COMPARED = "compared"
    SKIPPED = "skipped"
    """No verifier could compute it: none of its revision was free, or the one that did was lost."""
    DROPPED = "dropped"
    """Too many tokens waited already."""


@dataclass(slots=True)
class Tally:
    """Of one model."""

    num_sequences: int = 0
    """Sequences that were compared."""
    num_tokens: int = 0
    """Tokens that were compared."""
    num_mismatches: int = 0
    """Tokens of them that differed."""


class Tallies:
    """Of all models."""

    def __init__(self, models: Iterable[str], num_waiting: Callable[[], int]) -> None:
        """`num_waiting` says how many sequences wait."""
        instruments = meter("paceline.audit")
        self._tokens = instruments.create_counter("paceline.audit.tokens", "{token}", "Tokens computed once more.")
        self._mismatches = instruments.create_counter(
            "paceline.audit.mismatches", "{token}", "Tokens that differed when they were computed without speculation."
        )
        self._sequences = instruments.create_counter(
            "paceline.audit.sequences", "{sequence}", "Sequences to be computed once more, by what became of them."
        )

        def waiting(_: CallbackOptions) -> list[Observation]:
            return [Observation(num_waiting())]

        instruments.create_observable_gauge("paceline.audit.waiting", [waiting], "{sequence}", "Sequences that wait.")
        self.of = {model: Tally() for model in models}
        for model in self.of:
            self.compared(model, 0, 0)

    def compared(self, model: str, num_tokens: int, num_mismatches: int) -> None:
        """So many tokens were compared, of which so many differed."""
        self._tokens.add(num_tokens, {"model": model})
        self._mismatches.add(num_mismatches, {"model": model})
        self.of[model].num_tokens += num_tokens
        self.of[model].num_mismatches += num_mismatches

    def over(self, model: str, fate: Fate, *, elsewhere: bool = False) -> None:
        """A sequence is over; `elsewhere` says whether a verifier computed it that had not decided it before."""
        self._sequences.add(1, {"model": model, "fate": str(fate), "elsewhere": elsewhere})
        self.of[model].num_sequences += fate is Fate.COMPARED
