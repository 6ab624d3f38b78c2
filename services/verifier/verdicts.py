"""What was measured of speculation, kept for the next start: a JSON file, by what it was measured on.

It only ever says with which way to begin, and when that is tried. A file that is damaged, or of another version, is as
good as none.
"""

import json
import logging
import os
import platform
import time
from collections import abc
from pathlib import Path
from typing import Any

from services.engine.engine import Engine
from services.verifier.decision import FIRST
from services.verifier.load import WINDOW, Load, Way
from services.verifier.rate import Ratio

_log = logging.getLogger(__name__)
_VERSION = 1
_MAX_SETUPS = 64
"""Setups that are remembered; the oldest go first."""
_MAX_WEIGHT = 100.0
"""A verdict counts at most as a trial of a tenth of error: it is another day, and the machine may have other work."""


class Verdicts:
    """The file, as one setup uses it: a revision of a target on a machine."""

    def __init__(self, path: str, setup: str) -> None:
        """An empty path keeps nothing."""
        self._path = Path(path) if path else None
        self._setup = setup

    def load(self) -> list[Load]:
        """What is known; empty where nothing is."""
        try:
            return [_from_json(entry) for entry in self._read().get(self._setup, {}).get("loads", ())]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _log.warning("%s is damaged, and is not used: %s", self._path, error)
            return []

    def save(self, loads: abc.Iterable[Load]) -> None:
        """Keeps what was measured, beside what other setups kept."""
        entries = [_to_json(load) for load in loads if load.ratios]
        if self._path is None or not entries:
            return
        setups = self._read()
        setups[self._setup] = {"at": time.time(), "loads": entries}
        kept = sorted(setups.items(), key=lambda item: -float(item[1]["at"]))[:_MAX_SETUPS]
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps({"version": _VERSION, "setups": dict(kept)}))
            new.replace(self._path)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error)

    def _read(self) -> dict[str, Any]:
        """All setups of the file, those that are damaged left out."""
        if self._path is None:
            return {}
        try:
            written = json.loads(self._path.read_text())
            if written["version"] != _VERSION:
                return {}
            return {name: setup for name, setup in written["setups"].items() if float(setup["at"]) > 0}
        except FileNotFoundError:
            return {}
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            _log.warning("%s is damaged, and is not used: %s", self._path, error)
            return {}


def setup_of(engine: Engine) -> str:
    """What verdicts hold for: the target's revision and weights, on so many threads of this kind of machine."""
    description = engine.facts.description
    machine = [_processor(), str(os.cpu_count()), str(engine.config.num_threads), description.device, description.dtype]
    return "/".join([description.revision_digest, *machine])


def _processor() -> str:
    """The processor's name, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _to_json(load: Load) -> dict[str, Any]:
    ratios = {way.value: [ratio.mean, ratio.weight, ratio.num_windows] for way, ratio in load.ratios.items()}
    return {"rows": load.rows, "draft": load.draft, "way": load.way.value, "ratios": ratios}


def _from_json(entry: abc.Mapping[str, Any]) -> Load:
    load = Load(int(entry["rows"]), str(entry["draft"]), Way(entry["way"]))
    for way, (mean, weight, num_windows) in entry["ratios"].items():
        load.ratios[Way(way)] = Ratio(float(mean), min(_MAX_WEIGHT, float(weight)), int(num_windows))
    load.due = {way: 2 * WINDOW if way is Way.OFF else FIRST for way in Way}
    return load
