"""Pages of what was measured: tables, and on what machine."""

import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
import torch
import transformers

mpl.use("Agg")
_ROOT = Path(__file__).resolve().parent.parent
PAGES = _ROOT / "docs" / "benchmarks"
WORK_DIR = _ROOT / "build" / "benchmarks"
"""What takes long to make is kept here from one run to the next."""


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table with an empty line behind it."""
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in (header, *rows)]
    return [lines[0], "|---" * len(header) + "|", *lines[1:], ""]


def write_page(folder: Path, name: str, lines: Sequence[str]) -> Path:
    """Writes a page into a folder, which is made if need be, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{name}.md"
    page.write_text("\n".join(lines))
    return page


def machine() -> str:
    """When and on what a page was measured."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {versions}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {torch.get_num_threads()} cores"
    return platform.processor()
