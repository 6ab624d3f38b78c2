"""Where what belongs to a user lies (XDG Base Directory Specification)."""

import os
from pathlib import Path


def data_folder() -> Path:
    """What has to be kept."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "paceline"


def cache_folder() -> Path:
    """What can be made anew."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline"
