"""What OpenTelemetry's semantic conventions for generative AI, version 0.1.0, call things: of spans and of metrics.

See https://github.com/open-telemetry/semantic-conventions-genai/tree/v0.1.0/docs/gen-ai. They are in development: names
change from one version to the next, and ours with them only when this one does. Nothing of a prompt or a text is among
what is used.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from opentelemetry.metrics import Histogram, Meter
from opentelemetry.util.types import AttributeValue

from gateway.generation.outcome import Record
from gateway.generation.validation import Request
from paceline.v1 import inference_pb2, sampling_pb2

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/gen-ai/0.1.0"

_PROVIDER = "paceline"
_FINISH_REASONS: Mapping["sampling_pb2.FinishReason.ValueType", str] = {
    sampling_pb2.FINISH_REASON_EOS: "stop",
    sampling_pb2.FINISH_REASON_STOP: "stop",
    sampling_pb2.FINISH_REASON_LENGTH: "length",
}
_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "presence_penalty", "frequency_penalty", "seed")
"""Sampling parameters that have a name there."""
_LARGEST_INTEGER = (1 << 63) - 1
"""OpenTelemetry knows no larger one, and seeds may be."""


class Times(NamedTuple):
    """A histogram of times, in seconds."""

    name: str
    description: str
    buckets: Sequence[float]

    def of(self, meter: Meter) -> Histogram:
        """The instrument."""
        return meter.create_histogram(
            self.name, "s", self.description, explicit_bucket_boundaries_advisory=self.buckets
        )


DURATION = Times(
    "gen_ai.server.request.duration",
    "Generative AI server request duration such as time-to-last byte or last output token.",
    (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
FIRST = Times(
    "gen_ai.server.time_to_first_token",
    "Time to generate first token for successful responses.",
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
PER_OUTPUT = Times(
    "gen_ai.server.time_per_output_token",
    "Time per output token generated after the first token for successful responses.",
    (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)


def operation_of(request: Request) -> str:
    """What is done."""
    return "chat" if isinstance(request, inference_pb2.ChatRequest) else "text_completion"


def dimensions(record: Record) -> dict[str, str]:
    """What tells requests apart in metrics."""
    labels = {"gen_ai.operation.name": record.operation, "gen_ai.provider.name": _PROVIDER}
    return labels | ({"gen_ai.request.model": record.model} if record.model else {})


def attributes(record: Record) -> dict[str, AttributeValue]:
    """What is told of a request that ended."""
    usage, sampling = record.usage(), record.sampling
    told: dict[str, AttributeValue] = {
        **dimensions(record),
        "gen_ai.response.id": record.request_id,
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": usage.num_prompt_tokens,
        "gen_ai.usage.output_tokens": usage.num_completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.num_cached_tokens,
    }
    told |= {f"gen_ai.request.{of.name}": value for of, value in sampling.ListFields() if of.name in _SAMPLING}
    if sampling.seed > _LARGEST_INTEGER:
        del told["gen_ai.request.seed"]
    if record.model:
        told["gen_ai.response.model"] = record.model
    if len(record.choices) > 1:
        told["gen_ai.request.choice.count"] = len(record.choices)
    if record.finish_reasons:
        told["gen_ai.response.finish_reasons"] = [
            _FINISH_REASONS.get(record.finish_reasons[choice], "other") for choice in sorted(record.finish_reasons)
        ]
    if record.seconds_to_first_token is not None:
        told["gen_ai.response.time_to_first_chunk"] = record.seconds_to_first_token
    if record.error_type:
        told["error.type"] = record.error_type
    return told
