"""Work that need not be done now: what batches ask for."""

BACKGROUND_PRIORITY = -101
"""Below all that callers may ask for. Sequences of this priority run on what others leave idle: they make no step of
others noticeably longer, and a step of theirs alone is given up when another comes."""
