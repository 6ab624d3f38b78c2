"""What the gateway measures: what a client waits for, and how requests end."""

from opentelemetry.metrics import CallbackOptions, Observation

from gateway.generation.admission import Admission
from gateway.generation.outcome import Record
from services.common.telemetry import meter


class GatewayMetrics:
    """Instruments of the gateway, by model. Times in seconds."""

    def __init__(self, admission: Admission) -> None:
        instruments = meter("paceline.gateway")
        self._first = instruments.create_histogram("paceline.time_to_first_token", "s", "Admission to first token.")
        self._gap = instruments.create_histogram("paceline.inter_token_latency", "s", "Time a token, between deltas.")
        self._ended = instruments.create_counter("paceline.request.ended", "{request}", "Requests by how they ended.")
        self._prompt = instruments.create_counter("paceline.request.prompt_tokens", "{token}", "Tokens of prompts.")
        self._drafted = instruments.create_counter("paceline.request.drafted_tokens", "{token}", "Proposed, verified.")
        self._accepted = instruments.create_counter("paceline.request.accepted_tokens", "{token}", "Accepted.")
        self._completed = instruments.create_counter("paceline.request.completion_tokens", "{token}", "Produced.")
        self._failovers = instruments.create_counter(
            "paceline.request.failovers", "{failover}", "Sequences opened again after a verifier was lost."
        )
        self._dropped = instruments.create_counter(
            "paceline.request.dropped_proposals", "{proposal}", "Proposals that came between two verifiers."
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
        is_first = not record.time_to_first_token
        gap = record.tokens(count)
        if is_first:
            self._first.record(record.time_to_first_token, {"model": record.model})
        else:
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
        self._failovers.add(sum(transcript.num_failovers for transcript in record.transcripts), labels)
        self._dropped.add(sum(transcript.num_dropped for transcript in record.transcripts), labels)
