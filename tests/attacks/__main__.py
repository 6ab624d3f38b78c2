"""`make attack`: a system under attack. Exit code 1 when something happened that must not; such inputs are printed."""

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console

from attacks.attack import Attack
from attacks.siege import Findings, besieged
from attacks.waits import longest_waits

_EVERY = 1_000
_MOST_SHOWN = 40


def main() -> int:
    """Reads the command line and attacks."""
    parser = argparse.ArgumentParser(prog="python -m attacks", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time, which is printed")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--huge", type=float, default=1.0, help="share of the inputs of megabytes that is sent")
    parser.add_argument("--replay", metavar="LINE", help="sends one input that an earlier run printed, and no other")
    parser.add_argument("--alone", action="store_true", help="sends the inputs of megabytes alone, and times others")
    parser.add_argument("--model", type=Path, help="folder of the target; default: a tiny one")
    parser.add_argument("--report", type=Path, help="file that is told in JSON what processes held")
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True, log_path=False)
    if arguments.alone:
        return asyncio.run(_alone(arguments, console))
    found = asyncio.run(_attack(arguments, console))
    for name, after in found.after.items():
        before = found.before[name]
        console.print(
            f"{name}: {before.megabytes:.0f} MB, then {after.megabytes:.0f} MB; "
            f"{before.num_files} files open, then {after.num_files}"
        )
    console.print(f"others asked meanwhile: {dict(found.num_answers)}")
    for seconds, call in found.slowest:
        console.print(f"{seconds:.1f} s: {call}", markup=False)
    for fault in found.faults:
        console.print(f"FAULT {fault}", markup=False)
    console.print(f"{found.outcomes.total()} inputs, {len(found.faults)} faults: {dict(found.outcomes)}")
    if arguments.report is not None:
        held = {name: after.megabytes for name, after in found.after.items()}
        told = {"inputs": found.outcomes.total(), "faults": len(found.faults), "megabytes": held}
        arguments.report.write_text(json.dumps(told))
    return 1 if found.faults else 0


async def _attack(arguments: argparse.Namespace, console: Console) -> Findings:
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    with tempfile.TemporaryDirectory(prefix="paceline-attacks-") as folder:
        async with besieged(Path(folder), arguments.model) as siege:
            generator = siege.generator(seed, arguments.huge)
            told: Counter[str] = Counter()

            def tell(attack: Attack, outcome: str) -> None:
                told["all"] += 1
                if arguments.replay is not None:
                    console.print(f"{attack}: {outcome}", markup=False)
                elif told["all"] % _EVERY == 0:
                    console.log(f"{told['all']} inputs sent")

            if arguments.replay is not None:
                return await siege.endure([Attack.of_line(arguments.replay)], tell)
            console.log(f"seed {seed}, {arguments.count} inputs, {generator.num_extremes} extremes of fields")
            numbers = range(arguments.first, arguments.first + arguments.count)
            return await siege.endure((generator.attack(number) for number in numbers), tell)


async def _alone(arguments: argparse.Namespace, console: Console) -> int:
    """Sends what is large, one after the other; tells how long others waited."""
    with tempfile.TemporaryDirectory(prefix="paceline-attacks-") as folder:
        async with besieged(Path(folder), arguments.model) as siege:
            waits = await longest_waits(siege, siege.generator(arguments.seed or 0, 1.0).huge())
    for wait in waits[:_MOST_SHOWN]:
        console.print(f"{wait.seconds:.3f} s for {wait.question} beside {wait.attack}: {wait.outcome}", markup=False)
    if arguments.report is not None:
        told = [
            {"seconds": wait.seconds, "question": wait.question, "beside": f"{wait.attack.method}: {wait.attack.label}"}
            for wait in waits
        ]
        arguments.report.write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
