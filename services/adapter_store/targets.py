"""Which layers of a model a configuration targets: as PEFT decides it (`check_target_module_exists`)."""

from collections.abc import Sequence

from paceline.errors import InvalidArgumentError
from services.adapter_store.patterns import PatternError, first_matches
from services.common.lora.config import CONFIG_NAME, LoraConfig

_ALL = "all-linear"
_ANY_NUMBER = r".*?\.[^.]*\.(?P<idx>\d+)\."
"""The first number in a layer's name that stands behind a part of its own."""


def targeted(config: LoraConfig, modules: Sequence[str]) -> list[str]:
    """Those of the modules that the configuration targets, in order. Raises InvalidArgumentError."""
    chosen = _chosen("target_modules", config.target_modules, modules)
    if config.exclude_modules is not None:
        excluded = set(_chosen("exclude_modules", config.exclude_modules, chosen))
        chosen = [name for name in chosen if name not in excluded]
    if config.layers_to_transform is not None:
        wanted = set(config.layers_to_transform)
        patterns = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." for pattern in config.layers_pattern] or [_ANY_NUMBER]
        numbers = _matches("layers_pattern", patterns, chosen, whole=False)
        chosen = [
            name
            for name, number in zip(chosen, numbers, strict=True)
            if number and number.isdecimal() and int(number) in wanted
        ]
    if not chosen:
        raise InvalidArgumentError(f"{CONFIG_NAME}:target_modules", "targets no layer that adapters may change here")
    return chosen


def _chosen(key: str, wanted: tuple[str, ...] | str, modules: Sequence[str]) -> list[str]:
    if isinstance(wanted, tuple):
        ends = set(wanted)
        return [name for name in modules if not ends.isdisjoint(_ends(name))]
    if key == "target_modules" and wanted.lower() == _ALL:
        return list(modules)
    found = _matches(key, [wanted], modules, whole=True)
    return [name for name, match in zip(modules, found, strict=True) if match is not None]


def _ends(name: str) -> list[str]:
    """A name, and what stands behind each of its dots."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _matches(key: str, patterns: list[str], names: Sequence[str], *, whole: bool) -> list[str | None]:
    try:
        return first_matches(patterns, names, whole=whole)
    except PatternError as error:
        raise InvalidArgumentError(f"{CONFIG_NAME}:{key}", str(error)) from error
