"""A target that computes the shipped target's function at the cost of a model eight times its size.

Its tokens are the shipped target's, so acceptance is that of real text; the time of a step is that of reading all the
weights. Figures measured with it say "heavy target".
"""

from pathlib import Path

from services.engine.enlarged import enlarge

NUM_LAYERS = 14
INTERMEDIATE_SIZE = 6656


def build_heavy(shipped: str, folder: Path) -> str:
    """Builds the heavy target into a folder, unless it is there, and returns the folder's path."""
    if not (folder / "config.json").exists():
        enlarge(Path(shipped), folder, NUM_LAYERS, INTERMEDIATE_SIZE)
    return str(folder)
