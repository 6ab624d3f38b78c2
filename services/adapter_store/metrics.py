"""What the adapter store measures of itself."""

from services.common.telemetry import counter, meter


class StoreMetrics:
    """Counters of adapters taken, refused, sent and forgotten."""

    def __init__(self) -> None:
        instruments = meter("paceline.adapter_store")
        self._uploads = counter(
            instruments, "paceline.adapter_uploads", "{adapter}", "Uploads, by outcome.", [{"outcome": "kept"}]
        )
        self._uploaded = counter(instruments, "paceline.adapter_uploaded_bytes", "By", "Of adapters kept.")
        self._fetches = counter(instruments, "paceline.adapter_fetches", "{adapter}", "Adapters sent.")
        self._forgotten = counter(instruments, "paceline.forgotten_adapters", "{adapter}", "Content deleted.")

    def kept(self, num_bytes: int) -> None:
        """An upload was kept."""
        self._uploads.add(1, {"outcome": "kept"})
        self._uploaded.add(num_bytes)

    def refused(self, reason: str) -> None:
        """An upload was not; `reason` is the kind of error."""
        self._uploads.add(1, {"outcome": reason})

    def fetched(self) -> None:
        """An adapter was sent."""
        self._fetches.add(1)

    def forgotten(self, count: int) -> None:
        """So many adapters were deleted because no label was on them."""
        self._forgotten.add(count)
