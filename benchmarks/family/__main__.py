"""Makes a pair of the family: `python -m benchmarks.family --make 6-78 --folder DIR`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.family.build import build_pair
from benchmarks.family.shape import FIXED, find_shape


def main() -> int:
    """Makes one pair, or lists them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family", description=__doc__)
    parser.add_argument("--make", metavar="PAIR", help="its name; without it, all are listed")
    parser.add_argument("--folder", type=Path, help="where target/ and draft/ are written")
    arguments = parser.parse_args()
    out = Console(highlight=False)
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
