"""What the gateway measures: what a client waits for, and how requests end."""

from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, Observation

from gateway.generation import gen_ai
from gateway.generation.admission import Admission
from gateway.generation.outcome import Outcome, Record
from services.common.telemetry import counter, meter


class GatewayMetrics:
    """Instruments of the gateway, by model. Times in seconds."""

    def __init__(self, admission: Admission, models: Iterable[str] = ()) -> None:
        """`models` are the ids of those that are served."""
        instruments, of = meter("paceline.gateway"), [{"model": model} for model in models]
        self._duration, self._first, self._token = (
            times.of(instruments) for times in (gen_ai.DURATION, gen_ai.FIRST, gen_ai.PER_OUTPUT)
        )
        self._queue = instruments.create_histogram("paceline.request.queue_time", "s", "Arrival to admission.")
        self._gap = instruments.create_histogram("paceline.inter_token_latency", "s", "Time a token, between deltas.")
        self._ended = counter(
            instruments,
            "paceline.request.ended",
            "{request}",
            "Requests by how they ended.",
            ({**each, "outcome": str(outcome)} for each in of for outcome in Outcome),
        )
        self._prompt = counter(instruments, "paceline.request.prompt_tokens", "{token}", "Tokens of prompts.", of)
        self._cached = counter(
            instruments, "paceline.request.cached_tokens", "{token}", "Tokens of prompts that were found computed.", of
        )
        self._drafted = counter(instruments, "paceline.request.drafted_tokens", "{token}", "Proposed, verified.", of)
        self._accepted = counter(instruments, "paceline.request.accepted_tokens", "{token}", "Accepted.", of)
        self._completed = counter(instruments, "paceline.request.completion_tokens", "{token}", "Produced.", of)
        self._failovers = counter(
            instruments,
            "paceline.request.failovers",
            "{failover}",
            "Sequences opened again after a verifier was lost.",
            of,
        )
        self._dropped = counter(
            instruments,
            "paceline.request.dropped_proposals",
            "{proposal}",
            "Proposals that came between two verifiers.",
            of,
        )

        def requests(_: CallbackOptions) -> list[Observation]:
            return [
                Observation(admission.active, {"state": "active"}),
                Observation(admission.queued, {"state": "queued"}),
            ]

        instruments.create_observable_gauge("paceline.requests", [requests], "{request}", "Requests by state.")

    def record_tokens(self, record: Record, count: int) -> None:
        """Notes that so many tokens of a request are handed out."""
        if not count:
            return
        is_first = record.seconds_to_first_token is None
        gap = record.tokens(count)
        if not is_first:
            self._gap.record(gap, {"model": record.model})

    def record_end(self, record: Record) -> None:
        """Counts a request that ended, however it did."""
        labels = {"model": record.model}
        usage = record.usage()
        self._ended.add(1, {**labels, "outcome": str(record.outcome)})
        self._prompt.add(usage.num_prompt_tokens, labels)
        self._drafted.add(usage.num_drafted_tokens, labels)
        self._accepted.add(usage.num_accepted_tokens, labels)
        self._completed.add(usage.num_completion_tokens, labels)
        self._cached.add(usage.num_cached_tokens, labels)
        self._failovers.add(record.num_failovers, labels)
        self._dropped.add(sum(transcript.num_dropped for transcript in record.transcripts), labels)
        if record.was_admitted:
            self._queue.record(record.queue_seconds, labels)
        self._record_times(record)

    def _record_times(self, record: Record) -> None:
        labels = gen_ai.dimensions(record)
        failed = {"error.type": record.error_type} if record.error_type else {}
        self._duration.record(record.total_seconds, {**labels, **failed})
        if record.outcome is Outcome.FINISHED:
            if record.seconds_to_first_token is not None:
                self._first.record(record.seconds_to_first_token, labels)
            if record.seconds_a_token is not None:
                self._token.record(record.seconds_a_token, labels)
