"""A family of pairs, listed, made and measured.

`--make 6-78 --folder DIR` makes a pair, `--measure` measures all of them, `--quick` a few of them.
"""

import argparse
import secrets
import sys
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from benchmarks.family.build import build_pair
from benchmarks.family.page import run_family
from benchmarks.family.shape import FIXED, find_shape
from benchmarks.page import PAGES, WORK_DIR


def main() -> int:
    """Exit code 1 when an output differed or a floor was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family", description=__doc__)
    parser.add_argument("--make", metavar="PAIR", help="makes a pair; a name, or drawn-SEED-NUMBER")
    parser.add_argument("--folder", type=Path, help="where target/ and draft/ are written")
    parser.add_argument("--measure", action="store_true", help="measures all and four that a seed draws: 80 minutes")
    parser.add_argument("--draft-process", action="store_true", help="the draft has a process; else the verifier's")
    parser.add_argument("--quick", action="store_true", help="measures a few, greedy: 10 minutes")
    parser.add_argument(
        "--seed", type=int, default=None, help="of the pairs that are drawn; default: another each time"
    )
    arguments = parser.parse_args()
    out = Console(highlight=False)
    if arguments.measure or arguments.quick:
        seed = secrets.randbits(16) if arguments.seed is None else arguments.seed
        apart = arguments.draft_process
        page, held = run_family(PAGES, WORK_DIR, is_quick=arguments.quick, seed=seed, draft_process=apart)
        out.print(Markdown(page.read_text()))
        return 0 if held else 1
    if not arguments.make:
        out.print(_listed())
        return 0
    if arguments.folder is None:
        parser.error("--make takes --folder")
    try:
        shape = find_shape(arguments.make)
    except ValueError as error:
        parser.error(str(error))
    built = build_pair(shape, arguments.folder)
    out.print(f"{built.target}\n{built.draft}", markup=False)
    out.print(f"{shape.ratio:.1f}:1, both agree on {built.agreement:.3f} of greedy picks, factor {built.factor:.4f}")
    return 0


def _listed() -> Table:
    table = Table("pair", "target", "draft", "ratio", "accepted", "width", "heads / KV", "vocabulary", "tied", box=None)
    for shape in FIXED:
        sizes = (f"{shape.target_weights / 1e6:.0f} M", f"{shape.draft_weights / 1e6:.1f} M", f"{shape.ratio:.1f}:1")
        heads = f"{shape.num_heads} / {shape.num_kv_heads}"
        rest = (str(shape.width), heads, str(shape.vocab_size), "yes" if shape.tied else "no")
        table.add_row(shape.name, *sizes, f"{shape.acceptance:g}", *rest)
    return table


if __name__ == "__main__":
    sys.exit(main())
