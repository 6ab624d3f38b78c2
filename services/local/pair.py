"""One served model and its draft, as a user names them; those that ship; and files that list several."""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.common.checkpoint import CheckpointError, check_model, check_tokenizer
from services.common.graft import check_graft, is_graft
from services.engine.config import Device, Dtype, Weights
from services.local.errors import LaunchError
from services.local.model_files import (
    KNOWN,
    SHIPPED,
    check_file,
    draft_folder_of,
    folder_of,
    gguf_of,
    installed,
    shipped_draft,
)

PYTHON_PAIR = "python-pair"
"""Name of the pair that ships whole: two small models of Python source."""
ASSISTANT = "smollm2"
"""Name of the model that is served where nobody names one."""


class Pair(BaseModel):
    """A target, and what stands beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(min_length=1)] | None = Field(None, description="Default: the folder's name.")
    model: str = Field(min_length=1, description="Target: folder, GGUF file, hub id, or a name of `paceline get`.")
    draft: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Draft, as the target is named; none: no speculation."
    )
    draft_process: bool = Field(True, description="Whether the draft has a process of its own; else the target's.")
    device: Device = Field(Device.AUTO, description="Where both run.")
    dtype: Dtype = Field(Dtype.AUTO, description="Data type of both models' weights.")
    weights: Weights = Field(Weights.AUTO, description="int8 rounds the target's weights to 8 bits, on a CPU.")
    threads: int | None = Field(None, ge=1, description="CPU threads of the target; default: its share.")
    draft_threads: int | None = Field(None, ge=1, description="CPU threads of the draft; default: its share.")
    adapters: int | None = Field(None, ge=0, description="Adapters that one step may mix; default: 8.")
    max_context_tokens: int | None = Field(None, ge=2, description="Prompt and output; default: the model's.")
    generation_config: bool = Field(True, description="Samples as generation_config.json says, where requests do not.")
    kv_bytes: int | None = Field(None, ge=1, description="Memory for KV blocks of each; default: 1 GiB.")

    @property
    def public_id(self) -> str:
        """The id that clients use."""
        path = Path(self.model).expanduser()
        if self.id is not None or self.model in KNOWN:
            return self.id or self.model
        if path.is_dir():
            return path.resolve().name
        return path.stem if path.is_file() else self.model

    def engine(self, model: str, num_threads: int) -> dict[str, Any]:
        """Settings of the engine that runs one of both."""
        given = {
            "max_adapters": self.adapters,
            "max_context_tokens": self.max_context_tokens,
            "kv_bytes": self.kv_bytes,
        }
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if model == self.model and self.weights is not Weights.AUTO:
            chosen["weights"] = self.weights
        return {"model": model, "device": self.device, "dtype": self.dtype, "num_threads": num_threads, **chosen}

    def check(self) -> None:
        """Raises LaunchError when one of both certainly cannot be served, without loading anything."""
        try:
            for name in filter(None, (self.model, self.draft)):
                if name == self.draft and is_graft(name):
                    check_graft(Path(name).expanduser())
                    continue
                if (file := gguf_of(name)) is not None:
                    check_file(file)
                    continue
                check_model(name)
                if name == self.model:
                    check_tokenizer(name)
        except CheckpointError as error:
            raise LaunchError(str(error)) from error

    async def ready(self) -> "Pair":
        """The same with folders in place of GGUF files, which are converted if need be. Raises LaunchError."""
        model = await folder_of(self.model)
        draft = self.draft and await draft_folder_of(self.draft, model)
        return self.model_copy(update={"id": self.public_id, "model": model, "draft": draft})


def read_models(path: Path, **defaults: Any) -> tuple[Pair, ...]:
    """The pairs of a TOML file: a table [[models]] for each. Folders may be relative to the file.

    `defaults` are for tables that do not say otherwise. Raises LaunchError, which names the line or the key.
    """
    try:
        written = tomllib.loads(path.read_text())
    except OSError as error:
        raise LaunchError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LaunchError(f"{path} is no TOML: {error}") from None
    tables = written.pop("models", None)
    if written:
        raise LaunchError(f"{path}: there is no key {next(iter(written))!r}; each model is a table [[models]]")
    if not isinstance(tables, list) or not tables:
        raise LaunchError(f"{path} lists no models; each is a table [[models]]")
    pairs = tuple(_read(path, number, table, defaults) for number, table in enumerate(tables, 1))
    ids = [pair.public_id for pair in pairs]
    if twice := [name for name in ids if ids.count(name) > 1]:
        raise LaunchError(f"{path}: two models are called {twice[0]!r}; give one of them an id of its own")
    return pairs


def named(model: str | None) -> tuple[str, str | None]:
    """Target and draft that a user means by a name; None is the assistant, or the pair of Python source without it.

    Raises LaunchError when what should ship does not.
    """
    name = model or (ASSISTANT if is_here(ASSISTANT) else PYTHON_PAIR)
    if name == PYTHON_PAIR:
        return shipped_model("target"), shipped_model("draft")
    return name, shipped_draft(name)


def is_here(known: str) -> bool:
    """Whether the package of a known model is installed."""
    file = installed(KNOWN[known])
    return file is not None and file.is_file()


def shipped_model(name: str) -> str:
    """Folder of the "target" or the "draft" that ships."""
    folder = SHIPPED / name
    if not (folder / "config.json").exists():
        raise LaunchError(f"the {name} that ships is not in {SHIPPED}; name a model")
    return str(folder)


def shipped_adapters() -> dict[str, Path]:
    """Folders of the adapters that ship, by name: those of the pair of Python source and of known models."""
    folders = ("adapters", *(known.adapters for known in KNOWN.values() if known.adapters))
    found = (path.parent for each in folders for path in (SHIPPED / each).glob("*/adapter_config.json"))
    return {folder.name: folder for folder in sorted(found)}


def _read(path: Path, number: int, table: Any, defaults: dict[str, Any]) -> Pair:
    place = f"{path}: model {number}"
    if not isinstance(table, dict):
        raise LaunchError(f"{place} is no table")
    for key in ("model", "draft"):
        if isinstance(table.get(key), str) and (path.parent / table[key]).exists():
            table[key] = str(path.parent / table[key])
    try:
        return Pair(**{**defaults, **table})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            said = f"the key {key!r} is missing"
        elif first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, Pair.model_fields, 1)
            said = f"there is no key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        else:
            said = f"{key}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise LaunchError(f"{place}: {said}") from None
