"""`make bench`: measures, prints, and writes docs/benchmarks."""

import sys
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.report import write
from benchmarks.speculation import run
from gateway.launcher import shipped_model

_ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Exit code 1 when an output differed or a floor was missed."""
    report = run(shipped_model("target"), shipped_model("draft"), _ROOT / "build" / "benchmarks")
    page = write(report, _ROOT / "docs" / "benchmarks")
    Console().print(Markdown(page.read_text()))
    missed = [ratio.name for ratio in report.ratios if ratio.value < ratio.floor]
    return 1 if missed or report.mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
