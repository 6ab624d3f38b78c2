"""A target at the cost of a usual one, for who has none at hand: made on the spot from the one that ships."""

from pathlib import Path

from services.local.pair import shipped_model

NUM_LAYERS = 16
INTERMEDIATE_SIZE = 8192


def build_usual(folder: Path) -> str:
    """Makes it into a folder, in a second or two, and returns the folder's path."""
    from services.engine.enlarged import enlarge

    enlarge(Path(shipped_model("target")), folder, NUM_LAYERS, INTERMEDIATE_SIZE)
    return str(folder)
