"""Moments as messages have them."""

from google.protobuf.timestamp_pb2 import Timestamp


def timestamp(moment: float | None) -> Timestamp | None:
    """A moment in seconds since 1970, to the microsecond."""
    if moment is None:
        return None
    made = Timestamp()
    made.FromMicroseconds(int(moment * 1e6))
    return made
