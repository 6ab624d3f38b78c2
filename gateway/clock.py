"""Where a gateway reads the time of day: this one place, so that tests can set it as operators and machines do.

How long something took, or whether somebody is still there, is a matter of `time.monotonic`, which nobody sets.
"""

import time


def time_of_day() -> float:
    """Seconds since 1970, as this machine has it."""
    return time.time()
