"""How the tokens of a sequence are chosen. Values only; the sampler gives them meaning."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

MAX_TEMPERATURE = 100.0
MAX_PENALTY = 2.0
MAX_LOGIT_BIAS = 100.0
MAX_LOGIT_BIASES = 1024
MAX_LOGPROBS = 20


class InvalidSamplingError(ValueError):
    """Sampling parameters out of range: (field, what is wrong) for each."""

    def __init__(self, violations: list[tuple[str, str]]) -> None:
        self.violations = violations
        super().__init__("; ".join(f"{name} {problem}" for name, problem in violations))


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """See SamplingParams in sampling.proto, whose defaults these are. Raises InvalidSamplingError."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    max_tokens: int = 16
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    ignore_eos: bool = False
    logprobs: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    barred_at_first: frozenset[int] = frozenset()
    """Ids that are not picked among the first `min_tokens` tokens of the output: those that would end it."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Ids in a row of which the last is never picked behind the others."""

    def __post_init__(self) -> None:
        violations = self._violations()
        if violations:
            raise InvalidSamplingError(violations)

    def _violations(self) -> list[tuple[str, str]]:
        """Every field that does not fit, and why not."""
        bias = [value for value in self.logit_bias.values() if not abs(value) <= MAX_LOGIT_BIAS]
        # Comparisons are written so that NaN, which compares false with everything, does not fit.
        checks = [
            ("temperature", self.temperature, 0 <= self.temperature <= MAX_TEMPERATURE, "0 to 100"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k, self.top_k >= 0, "at least 0"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            ("seed", self.seed, 0 <= self.seed < 1 << 64, "an unsigned 64-bit number"),
            ("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                0 < self.repetition_penalty < math.inf,
                "above 0 and finite",
            ),
            ("presence_penalty", self.presence_penalty, abs(self.presence_penalty) <= MAX_PENALTY, "-2 to 2"),
            ("frequency_penalty", self.frequency_penalty, abs(self.frequency_penalty) <= MAX_PENALTY, "-2 to 2"),
            ("logit_bias", bias[:1], not bias and len(self.logit_bias) <= MAX_LOGIT_BIASES, "-100 to 100"),
            ("min_tokens", self.min_tokens, 0 <= self.min_tokens <= self.max_tokens, f"0 to {self.max_tokens}"),
            ("logprobs", self.logprobs, self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, "0 to 20"),
        ]
        return [(name, f"must be {wanted}, got {value}") for name, value, fits, wanted in checks if not fits]

    @property
    def needs_history(self) -> bool:
        """Whether a pick depends on which tokens came before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def keeps_logits(self) -> bool:
        """Whether nothing changes the logits before temperature."""
        return not (self.needs_history or self.logit_bias or self.bars)

    @property
    def bars(self) -> bool:
        """Whether some tokens are never picked, or not everywhere."""
        return bool(self.min_tokens or self.bad_words)

    @property
    def truncates(self) -> bool:
        """Whether unlikely tokens are cut off."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)
