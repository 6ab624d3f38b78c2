"""How batches and items are, and which of it is an end."""

from enum import IntEnum, StrEnum

from sqlalchemy import literal_column

from gateway.database.tables import batch_items
from paceline.v1 import batch_pb2


class BatchState(StrEnum):
    """See BatchState in batch.proto."""

    VALIDATING = "validating"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    EXPIRING = "expiring"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"

    @property
    def message(self) -> "batch_pb2.BatchState.ValueType":
        """As messages have it."""
        return batch_pb2.BatchState.Value(f"BATCH_STATE_{self.name}")


RUNNABLE = (BatchState.QUEUED, BatchState.RUNNING)
"""Items of these may begin."""
STOPPABLE = (*RUNNABLE, BatchState.PAUSED)
"""These can be cancelled, and expire."""
STOPPING = (BatchState.CANCELLING, BatchState.EXPIRING, BatchState.FINALIZING)
"""Items of these end as soon as they can."""
ENDED = (BatchState.COMPLETED, BatchState.CANCELLED, BatchState.EXPIRED, BatchState.FAILED)


class ItemState(IntEnum):
    """How an item is. The table's index of running ones knows the number."""

    WAITING = 0
    RUNNING = 1
    COMPLETED = 2
    FAILED = 3
    CANCELLED = 4
    EXPIRED = 5


RUNS = batch_items.c.state == literal_column(str(ItemState.RUNNING.value))
"""Written out, as databases want it to take the index of what runs, which stays small in a table of millions."""
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
    BatchState.FINALIZING: (ItemState.FAILED, BatchState.FAILED),
}
"""How items and batch end where the batch is being stopped."""
STOPPED = {
    ItemState.CANCELLED: ("batch_cancelled", "the batch was cancelled before this item was done"),
    ItemState.EXPIRED: ("batch_expired", "the batch's time was over before this item was done"),
    ItemState.FAILED: ("budget_exceeded", "the batch's budget had no room for this item"),
}
"""Code and message of items that did not end by themselves."""
