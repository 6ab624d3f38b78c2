"""How batches and items are, and which of it is an end."""

from enum import IntEnum, StrEnum

from paceline.v1 import batch_pb2


class BatchState(StrEnum):
    """See BatchState in batch.proto."""

    VALIDATING = "validating"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    EXPIRING = "expiring"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def message(self) -> "batch_pb2.BatchState.ValueType":
        """As messages have it."""
        return batch_pb2.BatchState.Value(f"BATCH_STATE_{self.name}")


RUNNABLE = (BatchState.QUEUED, BatchState.RUNNING)
"""Items of these may begin."""
STOPPABLE = (*RUNNABLE, BatchState.PAUSED)
"""These can be cancelled, and expire."""
STOPPING = (BatchState.CANCELLING, BatchState.EXPIRING)
"""Items of these end as soon as they can."""
ENDED = (BatchState.COMPLETED, BatchState.CANCELLED, BatchState.EXPIRED)


class ItemState(IntEnum):
    """How an item is. The table's index of running ones knows the number."""

    WAITING = 0
    RUNNING = 1
    COMPLETED = 2
    FAILED = 3
    CANCELLED = 4
    EXPIRED = 5


COUNT_OF = {
    ItemState.COMPLETED: "num_completed",
    ItemState.FAILED: "num_failed",
    ItemState.CANCELLED: "num_cancelled",
    ItemState.EXPIRED: "num_expired",
}
"""The batch's column that counts items which ended so."""
END_OF = {
    BatchState.CANCELLING: (ItemState.CANCELLED, BatchState.CANCELLED),
    BatchState.EXPIRING: (ItemState.EXPIRED, BatchState.EXPIRED),
}
"""How items and batch end where the batch is being stopped."""
STOPPED = {
    ItemState.CANCELLED: ("batch_cancelled", "the batch was cancelled before this item was done"),
    ItemState.EXPIRED: ("batch_expired", "the batch's time was over before this item was done"),
}
"""Code and message of items that did not end by themselves."""
