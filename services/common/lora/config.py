"""The files of a LoRA adapter as PEFT writes them: what a configuration says, what tensors are called, the digest.

The configuration is read strictly. Variants that the engine does not compute are refused by name and never ignored: a
key that is not known to be harmless may only say "off".
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paceline.errors import FieldViolation, InvalidArgumentError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 64 << 10
UNPICKLED = "load it with PEFT and save it with save_pretrained(..., safe_serialization=True)"
"""What to do with pickled weights."""
_MAX_LAYERS = 4096
_MIN_ALPHA, _MAX_ALPHA = 1e-6, 1e6
_COMPUTED = frozenset(
    {
        "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "target_modules",
        "exclude_modules", "layers_to_transform", "layers_pattern", "bias", "init_lora_weights", "rank_pattern",
        "alpha_pattern",
    }
)  # fmt: skip
_HARMLESS = frozenset(
    {
        "auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout", "fan_in_fan_out",
        "qalora_group_size", "megatron_core", "runtime_config",
    }
)  # fmt: skip
"""They matter for training, or only together with a key that is refused."""
_INITS = (True, False, None, "gaussian", "orthogonal")
"""Ways of beginning that leave the base model's weights alone."""
_MAX_VIOLATIONS = 20
_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
_DIGEST = re.compile("[0-9a-f]{64}")
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What an adapter's configuration says, as far as it matters for computing."""

    rank: int
    """The rank of layers that no pattern names."""
    alpha: float
    uses_root: bool
    """Whether scaling is by the root of the rank (rsLoRA)."""
    target_modules: tuple[str, ...] | str
    """Names of layers or their last parts, or a regular expression for whole names, or "all-linear"."""
    exclude_modules: tuple[str, ...] | str | None
    layers_to_transform: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    """Regular expressions for the name that stands before a layer's number; none: any."""
    base_model: str | None
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    """Ranks and alphas of layers by their names or the last parts of them; the first that fits holds, as in PEFT."""

    def rank_of(self, module: str) -> int:
        """The rank of a layer."""
        return next((rank for key, rank in self.rank_pattern if _ends_with(module, key)), self.rank)

    def scaling_of(self, module: str) -> float:
        """The factor of B (A x) of a layer."""
        alpha = next((alpha for key, alpha in self.alpha_pattern if _ends_with(module, key)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.uses_root else rank)


def parse_lora_config(data: bytes, max_rank: int) -> LoraConfig:
    """Reads adapter_config.json. Raises InvalidArgumentError, whose fields name the keys."""
    values = _parse_object(data)
    problems = [
        FieldViolation(f"{CONFIG_NAME}:{shown(key)}", f"is not supported: it must be off, got {shown(value)}")
        for key, value in values.items()
        if key not in _COMPUTED and key not in _HARMLESS and not _is_off(value)
    ]
    for key, (fits, wanted) in _rules(max_rank).items():
        if key not in values and key in ("peft_type", "r", "lora_alpha", "target_modules"):
            problems.append(FieldViolation(f"{CONFIG_NAME}:{key}", f"is missing: it must be {wanted}"))
        elif key in values and not fits(values[key]):
            description = f"must be {wanted}, got {shown(values[key])}"
            problems.append(FieldViolation(f"{CONFIG_NAME}:{key}", description))
    if not problems:
        problems += _contradictions(values)
    if problems:
        raise InvalidArgumentError(*problems[0], *problems[1:_MAX_VIOLATIONS])
    rank, pattern = values["r"], values.get("layers_pattern") or ()
    return LoraConfig(
        rank=rank,
        alpha=values["lora_alpha"],
        uses_root=bool(values.get("use_rslora")),
        rank_pattern=tuple((values.get("rank_pattern") or {}).items()),
        alpha_pattern=tuple((values.get("alpha_pattern") or {}).items()),
        target_modules=_names(values["target_modules"]) or (),
        exclude_modules=_names(values.get("exclude_modules")),
        layers_to_transform=_layers(values),
        layers_pattern=(pattern,) if isinstance(pattern, str) else tuple(pattern),
        base_model=values.get("base_model_name_or_path"),
    )


def tensor_names(module: str) -> tuple[str, str]:
    """What PEFT calls A [rank, in_features] and B [out_features, rank] of a layer."""
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


class AdapterDigest:
    """SHA-256 over both files, the configuration first: the size of each as 8 bytes, little-endian, then its bytes."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()

    def begin(self, num_bytes: int) -> None:
        """A file of this size follows."""
        self._hasher.update(num_bytes.to_bytes(8, "little"))

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes of the file."""
        self._hasher.update(data)

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return self._hasher.hexdigest()


def check_digest(field: str, digest: str) -> None:
    """Raises InvalidArgumentError for what can be no digest."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidArgumentError(field, "must be 64 hexadecimal digits in lower case")


def adapter_digest(config: bytes, weights: bytes) -> str:
    """The digest of an adapter whose files are in memory."""
    digest = AdapterDigest()
    for data in (config, weights):
        digest.begin(len(data))
        digest.update(data)
    return digest.hexdigest()


def shown(value: object) -> str:
    """Anything that a file says, for a message: printable and short."""
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    if isinstance(value, list):
        return f"a list of {len(value)} values"
    text = value if isinstance(value, str) else json.dumps(value)
    if not text.isprintable() or not text:
        text = ascii(text)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _parse_object(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidArgumentError(CONFIG_NAME, f"{len(data)} bytes are more than the limit of {MAX_CONFIG_BYTES}")
    try:
        values = json.loads(data.decode(), object_pairs_hook=unique_object, parse_constant=_refuse_constant)
        json.dumps(values, ensure_ascii=False).encode()  # Escapes can make half a character, which no message can say.
    except RecursionError as error:
        raise InvalidArgumentError(CONFIG_NAME, "is nested too deeply") from error
    except ValueError as error:
        raise InvalidArgumentError(CONFIG_NAME, f"is not JSON as PEFT writes it: {error}") from error
    if not isinstance(values, dict):
        raise InvalidArgumentError(CONFIG_NAME, f"must be a JSON object, got {shown(values)}")
    return values


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError when a key occurs twice."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"key {shown(key)} occurs twice")
        values[key] = value
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _rules(max_rank: int) -> dict[str, tuple[Callable[[Any], bool], str]]:
    """What the value of each key that matters must be, in code and in words."""
    names = "a list of names or a regular expression"

    def is_rank(value: Any) -> bool:
        return _is_int(value) and 1 <= value <= max_rank

    return {
        "peft_type": (lambda value: value == "LORA", '"LORA"'),
        "task_type": (lambda value: value in (None, "CAUSAL_LM"), '"CAUSAL_LM"'),
        "base_model_name_or_path": (lambda value: value is None or isinstance(value, str), "a string"),
        "r": (is_rank, f"a whole number from 1 to {max_rank}"),
        "lora_alpha": (_is_alpha, f"a number from {_MIN_ALPHA:g} to {_MAX_ALPHA:g}"),
        "rank_pattern": (
            lambda value: value is None or _is_pattern(value, is_rank),
            f"whole numbers from 1 to {max_rank} by names of layers, in letters, digits, _ and dots",
        ),
        "alpha_pattern": (
            lambda value: value is None or _is_pattern(value, _is_alpha),
            f"numbers from {_MIN_ALPHA:g} to {_MAX_ALPHA:g} by names of layers, in letters, digits, _ and dots",
        ),
        "use_rslora": (lambda value: value is None or isinstance(value, bool), "true or false"),
        "target_modules": (lambda value: bool(value) and _are_names(value), names),
        "exclude_modules": (lambda value: value is None or _are_names(value), names),
        "layers_to_transform": (_are_layers, "a layer's number or a list of them"),
        "layers_pattern": (lambda value: value is None or _are_names(value), names),
        "bias": (lambda value: value == "none", '"none": biases are not supported'),
        "init_lora_weights": (
            lambda value: value in _INITS,
            'true, false, "gaussian" or "orthogonal": others may change the weights of the base model',
        ),
    }


def _contradictions(values: dict[str, Any]) -> list[FieldViolation]:
    """What PEFT refuses too: layers chosen twice, or by half."""
    if isinstance(values["target_modules"], str) and (_layers(values) or values.get("layers_pattern")):
        return [FieldViolation(f"{CONFIG_NAME}:layers_to_transform", "needs a list of target_modules")]
    if values.get("layers_pattern") and _layers(values) is None:
        return [FieldViolation(f"{CONFIG_NAME}:layers_pattern", "needs layers_to_transform")]
    return []


def _names(value: Any) -> tuple[str, ...] | str | None:
    return tuple(value) if isinstance(value, list) and value else value or None


def _layers(values: dict[str, Any]) -> tuple[int, ...] | None:
    value = values.get("layers_to_transform")
    if value is None or value == []:
        return None
    return tuple(value) if isinstance(value, list) else (value,)


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_alpha(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _MIN_ALPHA <= value <= _MAX_ALPHA


def _is_pattern(value: Any, fits: Callable[[Any], bool]) -> bool:
    """PEFT takes regular expressions for keys; names, which it writes, are all that is taken from strangers."""
    return isinstance(value, dict) and all(_NAME.fullmatch(key) and fits(each) for key, each in value.items())


def _ends_with(module: str, key: str) -> bool:
    """Whether a layer's name ends with these parts."""
    return module == key or module.endswith(f".{key}")


def _are_names(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _are_layers(value: Any) -> bool:
    layers = value if isinstance(value, list) else [value]
    return value is None or (len(layers) <= _MAX_LAYERS and all(_is_int(layer) and layer >= 0 for layer in layers))
