"""What a folder or a hub id holds, told from its files alone and in moments: before anything heavy is loaded for it.

Every reason why a model cannot be served is one sentence that says what to do.
"""

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HUB_SECONDS = 2.0
_CONFIG = "config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model")
_TOKENIZER_PARTS = (*_TOKENIZERS, "tokenizer_config.json")
_TAKES: Mapping[str, tuple[str, ...]] = {
    "awq": ("gptqmodel", "accelerate"),
    "gptq": ("gptqmodel", "optimum", "accelerate"),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "fp8": ("accelerate",),
    "mxfp8": ("accelerate",),
    "mxfp4": ("accelerate",),
    "compressed-tensors": ("compressed_tensors",),
    "torchao": ("torchao",),
    "hqq": ("hqq", "accelerate"),
    "quanto": ("optimum", "accelerate"),
    "aqlm": ("aqlm", "accelerate"),
    "auto-round": ("auto_round",),
    "eetq": ("eetq", "accelerate"),
    "vptq": ("vptq", "accelerate"),
    "spqr": ("spqr_quant", "accelerate"),
    "quark": ("quark",),
    "bitnet": ("accelerate",),
}
"""Packages with which `transformers` loads checkpoints of a quantization, as they are imported."""
_OTHER_TASKS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
    "ForMultipleChoice",
    "ForImageClassification",
)


class CheckpointError(ValueError):
    """A model that cannot be served. The message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The files of a model, as far as they are on this machine."""

    name: str
    """The folder or hub id, as it was given."""
    folder: Path
    files: frozenset[str]
    """Names of all files, also of those that have not been downloaded."""

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says. Raises CheckpointError."""
        return self.read(_CONFIG)

    def read(self, file: str) -> dict[str, Any]:
        """What a JSON file says. Raises CheckpointError."""
        try:
            read = json.loads((self.folder / file).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.name}: {file} cannot be read: {error}") from error
        if not isinstance(read, dict):
            raise CheckpointError(f"{self.name}: {file} is no JSON object")
        return read


def check_model(name: str, *, trust_remote_code: bool = False) -> None:
    """Raises CheckpointError for what is certainly no model that can be served, without loading any of it."""
    found = find_checkpoint(name)
    _check_kind(found)
    config = found.config
    _check_architecture(found, config, trusts=trust_remote_code)
    _check_quantization(found, config)
    _check_weights(found)


def check_tokenizer(name: str) -> None:
    """Raises CheckpointError where there is no tokenizer."""
    found = find_checkpoint(name)
    if not found.files.intersection(_TOKENIZERS) and "auto_map" not in _read_if_there(found, "tokenizer_config.json"):
        raise CheckpointError(
            f"{name} has no tokenizer (tokenizer.json): put those files of the model beside it that its authors ship"
        )


def find_checkpoint(name: str) -> Checkpoint:
    """The files of a folder or hub id. Raises CheckpointError when there is neither."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Checkpoint(name, folder, frozenset(path.name for path in folder.iterdir()))
    if folder.exists():
        if folder.suffix == ".gguf":
            raise _gguf(name)
        raise CheckpointError(f"{name} is a file; a model is a folder or a hub id")
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise CheckpointError(f"there is no folder {name}")
    return _of_hub(name)


def _of_hub(name: str) -> Checkpoint:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = [try_to_load_from_cache(name, file) for file in (_CONFIG, *_TOKENIZER_PARTS)]
    except HFValidationError as error:
        raise CheckpointError(f"there is no folder {name}, and no model of the hub can have that name") from error
    paths = [Path(path) for path in cached if isinstance(path, str)]
    if paths:
        folder = paths[0].parent
        # What is missing may not have been downloaded: only what is there says anything.
        return Checkpoint(name, folder, frozenset(path.name for path in folder.iterdir()))
    return _downloaded(name)


def _downloaded(name: str) -> Checkpoint:
    """The small files of a model of the hub, fetched now."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        siblings = HfApi().model_info(name, timeout=_HUB_SECONDS).siblings or ()
        files = frozenset(sibling.rfilename for sibling in siblings)
        wanted = [file for file in (_CONFIG, "adapter_config.json", *_TOKENIZER_PARTS) if file in files]
        paths = [Path(hf_hub_download(name, file, etag_timeout=_HUB_SECONDS)) for file in wanted[:1]]
    except GatedRepoError as error:
        raise CheckpointError(
            f"the hub gives {name} only to those whom its owner lets: ask there, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"there is neither a folder {name} nor a model of that name on the hub") from error
    except OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"there is no folder {name}, the hub's cache here does not have it, and HF_HUB_OFFLINE is set"
        ) from error
    except Exception as error:  # Whatever keeps the hub from answering, the user needs the folder.
        raise CheckpointError(
            f"there is no folder {name}, the hub's cache here does not have it, and the hub cannot be reached: "
            "download it elsewhere and name its folder"
        ) from error
    return Checkpoint(name, paths[0].parent if paths else Path(), files)


def _check_kind(found: Checkpoint) -> None:
    """Refuses what is no checkpoint of transformers."""
    files, name = found.files, found.name
    if _CONFIG in files:
        return
    if "adapter_config.json" in files:
        base = found.read("adapter_config.json").get("base_model_name_or_path") or "its base model"
        raise CheckpointError(
            f"{name} is an adapter: serve {base}, then upload it with `paceline adapters upload {name}`"
        )
    if any(file.endswith(".gguf") for file in files):
        raise _gguf(name)
    if "model_index.json" in files:
        raise CheckpointError(f"{name} is a pipeline of diffusers and no language model")
    raise CheckpointError(f"{name} holds no model: there is no config.json in it")


def _gguf(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is a GGUF file, which is converted first: `paceline get {name}` prints the folder to name instead"
    )


def _check_architecture(found: Checkpoint, config: Mapping[str, Any], *, trusts: bool) -> None:
    name, architectures = found.name, config.get("architectures") or ()
    shown = architectures[0] if architectures else config.get("model_type")
    if config.get("is_encoder_decoder"):
        raise CheckpointError(f"{name} ({shown}) has an encoder and a decoder; only models of one decoder are served")
    if architectures and all(str(each).endswith(_OTHER_TASKS) for each in architectures):
        raise CheckpointError(f"{name} ({shown}) was made for another task than continuing text")
    model_type = config.get("model_type")
    if not model_type:
        raise CheckpointError(f"{name}: config.json does not say what kind of model it is (model_type)")
    if not _knows(model_type) and not (trusts and "auto_map" in config):
        way = "set trust_remote_code if you trust the code beside it" if "auto_map" in config else "a newer one may"
        raise CheckpointError(f"the installed transformers does not know models of type {model_type} ({name}); {way}")


def quantization_method(quantization: Mapping[str, Any]) -> str:
    """What `transformers` calls a quantization, by its configuration; empty where that does not say."""
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        return "bitsandbytes"
    method = quantization.get("quant_method")
    return str(getattr(method, "value", method) or "")


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _check_quantization(found: Checkpoint, config: Mapping[str, Any]) -> None:
    texts = config.get("text_config")
    quantized = config.get("quantization_config") or (isinstance(texts, dict) and texts.get("quantization_config"))
    if not isinstance(quantized, dict):
        return
    method = quantization_method(quantized)
    listed = f"{method}_4bit" if method == "bitsandbytes" else method
    if not is_listed(listed, ("quantizers/auto.py",)):  # It would be read as if it were not quantized.
        raise CheckpointError(
            f"{found.name} is quantized ({method or 'in an unnamed way'}), which the installed transformers does not "
            "read: take the checkpoint that it was made from"
        )
    missing = [package for package in _TAKES.get(method, ()) if importlib.util.find_spec(package) is None]
    if missing:
        raise CheckpointError(
            f"{found.name} is quantized ({method}), which takes packages that are not installed: "
            f"pip install {' '.join(missing).replace('_', '-')}, or take the checkpoint that it was made from"
        )


def _check_weights(found: Checkpoint) -> None:
    """Refuses a folder without weights, or without some of them. Of a hub id they are downloaded later."""
    if not Path(found.name).expanduser().is_dir():
        return
    weights = {file for file in found.files if file.endswith((".safetensors", ".bin"))}
    if not weights:
        if any(file.endswith(".gguf") for file in found.files):
            raise _gguf(found.name)
        raise CheckpointError(f"{found.name} holds no weights: there is no .safetensors file in it")
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        shards = _read_if_there(found, index).get("weight_map") or {}
        if missing := sorted(set(shards.values()) - weights):
            raise CheckpointError(f"{found.name} lacks {missing[0]}, in which {index} has some of the weights")
        if shards:
            return


def _read_if_there(found: Checkpoint, file: str) -> dict[str, Any]:
    return found.read(file) if (found.folder / file).is_file() else {}


def _knows(model_type: str) -> bool:
    """Whether the installed transformers lists a type of models."""
    return is_listed(model_type, ("models/auto/auto_mappings.py", "models/auto/configuration_auto.py"))


def is_listed(name: str, files: Sequence[str]) -> bool:
    """Whether files of the installed transformers hold a name. To import them would take longer than all else."""
    spec = importlib.util.find_spec("transformers")
    paths = [Path(root) / file for root in spec.submodule_search_locations or () for file in files] if spec else []
    return any(path.is_file() and f'"{name}"' in path.read_text() for path in paths)
