"""`make bench`: measures, prints, and writes docs/benchmarks; `python -m benchmarks PAGE ...` some pages only."""

import argparse
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks import (
    adapters,
    ahead,
    assistant,
    attacks,
    batch,
    envoy,
    kernels,
    moved,
    mtls,
    pauses,
    quality,
    recovered,
    repetition,
    reuse,
    simulation,
    speculation,
    starting,
    telemetry,
)
from benchmarks.ahead_report import write_ahead, write_recovered
from benchmarks.family.page import run_family
from benchmarks.page import PAGES, WORK_DIR
from benchmarks.report import write
from benchmarks.simulation_report import write_simulation
from services.local.pair import shipped_model

_DELAY_FLOOR = 0.9
_LOAD_FLOOR = 0.97
_READY_FLOOR = 0.8
_RECOVERED_PROMPTS = 24
_RECOVERED_TOKENS = 192


def _speculation(target: str, draft: str) -> tuple[Path, bool]:
    report = speculation.run(target, draft, WORK_DIR)
    held = not report.mismatches and all(ratio.value >= ratio.floor for ratio in report.ratios)
    return write(report, PAGES), held


def _ahead(target: str, draft: str) -> tuple[Path, bool]:
    report = ahead.run(target, draft, WORK_DIR)
    held = not report.mismatches and all(load.ratio >= _LOAD_FLOOR for load in report.loads)
    held = held and all(delay.relative >= _DELAY_FLOOR for delay in report.delays)
    return write_ahead(report, PAGES), held and report.delays[0].ready >= _READY_FLOOR


def _repetition(target: str, draft: str) -> tuple[Path, bool]:
    report = repetition.run(target, draft, WORK_DIR)
    return repetition.write_repetition(report, PAGES), repetition.holds(report)


def _recovered(target: str, draft: str) -> tuple[Path, bool]:
    prompts = speculation.held_out_prompts(target, _RECOVERED_PROMPTS)
    return write_recovered(recovered.measure(target, draft, prompts, _RECOVERED_TOKENS), PAGES), True


def _simulation(_target: str, _draft: str) -> tuple[Path, bool]:
    points = simulation.simulate()
    return write_simulation(points, PAGES), all(point.ahead >= _LOAD_FLOOR * point.plain for point in points)


def _reuse(target: str, _draft: str) -> tuple[Path, bool]:
    measures = reuse.run(target, WORK_DIR)
    return reuse.write_reuse(measures, PAGES), all(measure.holds for measure in measures)


def _adapters(target: str, _draft: str) -> tuple[Path, bool]:
    report = adapters.run(target, WORK_DIR)
    return adapters.write_adapters(report, PAGES), report.holds


def _family(_target: str, _draft: str) -> tuple[Path, bool]:
    return run_family(PAGES, WORK_DIR, is_quick=False, seed=secrets.randbits(16))


def _kernels(_target: str, _draft: str) -> tuple[Path, bool]:
    measured = kernels.run(WORK_DIR)
    return kernels.write_kernels(measured, PAGES), kernels.holds(measured)


def _attacks(target: str, draft: str) -> tuple[Path, bool]:
    measures = attacks.run(target, draft, WORK_DIR)
    return attacks.write_attacks(measures, PAGES), all(measure.holds for measure in measures)


def _starting(target: str, _draft: str) -> tuple[Path, bool]:
    starts, refusals = starting.run(target, WORK_DIR)
    held = all(start.holds for start in starts) and all(refusal.holds for refusal in refusals)
    return starting.write_starting(starts, refusals, PAGES), held


def _telemetry(target: str, draft: str) -> tuple[Path, bool]:
    costs = telemetry.run(target, draft)
    return telemetry.write_telemetry(costs, PAGES), all(cost.holds for cost in costs)


def _batch(target: str, _draft: str) -> tuple[Path, bool]:
    measures = batch.run(target, WORK_DIR)
    return batch.write_batch(measures, PAGES), all(measure.holds for measure in measures)


def _moved(target: str, draft: str) -> tuple[Path, bool]:
    load = moved.run(target, draft)
    return moved.write_moved(load, PAGES), load.holds


def _pauses(target: str, draft: str) -> tuple[Path, bool]:
    found, fetched = pauses.run(target, draft, WORK_DIR)
    held = fetched.holds and all(each.holds for each in found)
    return pauses.write_pauses(found, fetched, PAGES), held


def _mtls(target: str, draft: str) -> tuple[Path, bool]:
    costs = mtls.run(target, draft)
    return mtls.write_mtls(costs, PAGES), all(cost.holds for cost in costs)


def _assistant(_target: str, _draft: str) -> tuple[Path, bool]:
    report = assistant.run()
    return assistant.write_assistant(report, PAGES), report.holds


def _quality(_target: str, _draft: str) -> tuple[Path, bool]:
    report = quality.run()
    return quality.write_quality(report, PAGES), report.holds


def _envoy(target: str, draft: str) -> tuple[Path, bool]:
    costs = envoy.run(target, draft)
    return envoy.write_envoy(costs, PAGES), all(cost.holds for cost in costs)


_MEASURES: dict[str, Callable[[str, str], tuple[Path, bool]]] = {
    "speculation": _speculation,
    "ahead": _ahead,
    "assistant": _assistant,
    "quality": _quality,
    "repetition": _repetition,
    "reuse": _reuse,
    "adapters": _adapters,
    "attacks": _attacks,
    "starting": _starting,
    "kernels": _kernels,
    "batch": _batch,
    "telemetry": _telemetry,
    "mtls": _mtls,
    "pauses": _pauses,
    "moved": _moved,
    "envoy": _envoy,
    "recovered": _recovered,
    "simulation": _simulation,
    "family": _family,
}


def main() -> int:
    """Exit code 1 when an output differed or a floor was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE", choices=[*_MEASURES, []], help="default: all")
    missed = False
    for name in parser.parse_args().pages or _MEASURES:
        page, held = _MEASURES[name](shipped_model("target"), shipped_model("draft"))
        Console().print(Markdown(page.read_text()))
        missed = missed or not held
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
