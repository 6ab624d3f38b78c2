"""`paceline up`: everything in this terminal."""

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from paceline.cli.serve import ENGINE, reach
from paceline.cli.terminal import err, fail

_MAX_PORT = 65535


class Device(StrEnum):
    """Where models run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    """Data types of weights."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Weights(StrEnum):
    """In how many bits a target's weights are kept and multiplied."""

    AUTO = "auto"
    DTYPE = "dtype"
    INT8 = "int8"


class LogLevel(StrEnum):
    """Least severe lines that are shown."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


def up(
    model: Annotated[
        str | None,
        typer.Option(
            help="Target: folder, GGUF file, hub id, smollm2 or python-pair. Default: smollm2, if it is here."
        ),
    ] = None,
    draft_model: Annotated[
        str | None, typer.Option(help="Draft: folder or hub id; of smollm2 and python-pair theirs.")
    ] = None,
    no_draft: Annotated[bool, typer.Option("--no-draft", help="Starts no draft.")] = False,
    no_draft_process: Annotated[
        bool, typer.Option("--no-draft-process", help="Runs the draft in the target's process, on the same cores.")
    ] = False,
    no_generation_config: Annotated[
        bool, typer.Option("--no-generation-config", help="Does not sample as the model's generation_config.json says.")
    ] = False,
    models: Annotated[
        Path | None,
        typer.Option(help="TOML file with a table [[models]] a model: id, model, draft, dtype, threads, adapters ..."),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where models run.")] = Device.AUTO,
    dtype: Annotated[Dtype, typer.Option(help="Data type of the weights; auto takes the checkpoint's.")] = Dtype.AUTO,
    weights: Annotated[
        Weights, typer.Option(help="int8 rounds a target's weights to 8 bits, on a CPU; drafts are rounded anyway.")
    ] = Weights.AUTO,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    gateway_port: Annotated[int, typer.Option(min=1, max=_MAX_PORT, help="Port of the gateway.")] = 7100,
    draft_port: Annotated[
        int, typer.Option(min=1, max=_MAX_PORT, help="Port of the draft; of each further model's 10 more.")
    ] = 7101,
    verifier_port: Annotated[
        int, typer.Option(min=1, max=_MAX_PORT, help="Port of the verifier; of each further model's 10 more.")
    ] = 7102,
    no_prefix_cache: Annotated[bool, typer.Option("--no-prefix-cache", help="Starts no prefix cache.")] = False,
    prefix_cache_port: Annotated[int, typer.Option(min=1, max=_MAX_PORT, help="Port of the prefix cache.")] = 7103,
    cache_folder: Annotated[str | None, typer.Option(help="Keeps computed prompts in this folder too.")] = None,
    no_adapters: Annotated[bool, typer.Option("--no-adapters", help="Starts no adapter store.")] = False,
    adapter_store_port: Annotated[int, typer.Option(min=1, max=_MAX_PORT, help="Port of the adapter store.")] = 7104,
    adapter_folder: Annotated[
        str | None, typer.Option(help="Keeps adapters in this folder; default: among your user's data.")
    ] = None,
    database: Annotated[
        str, typer.Option(help="sqlite:///FILE or postgresql://...; default: among your user's data.")
    ] = "",
    threads_verifier: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: divided by the launcher.")
    ] = None,
    threads_draft: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: divided by the launcher.")
    ] = None,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Has Prometheus read each process on its own port.")
    ] = False,
    tls: Annotated[
        Path | None,
        typer.Option(help="Encrypts all connections with the certificates that `paceline certs make` made."),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="Least severe lines that are shown.")] = LogLevel.WARNING,
) -> None:
    """Keeps draft, verifier, prefix cache, adapter store and gateway running in this terminal until Ctrl-C."""
    reach(ENGINE)
    from services.local.certificate_folder import CertificateFolder
    from services.local.errors import LaunchError
    from services.local.model_files import KNOWN
    from services.local.pair import ASSISTANT, PYTHON_PAIR, Pair, is_here, named, read_models
    from services.local.system import SystemSettings, named_ports, user_adapters
    from services.local.up import keep_running

    try:
        if models is not None:
            if model or draft_model or no_draft:
                fail("--models names all models: leave --model, --draft-model and --no-draft out")
            defaults = {
                "device": device.value,
                "dtype": dtype.value,
                "weights": weights.value,
                "generation_config": not no_generation_config,
                "draft_process": not no_draft_process,
            }
            pairs = read_models(models, **defaults)
        else:
            if model is None and not is_here(ASSISTANT):
                err.print(
                    f"The assistant is not here: `paceline get {ASSISTANT}` fetches it ({KNOWN[ASSISTANT].what}). "
                    f"Until then, what runs is a small pair that knows nothing but Python source: {PYTHON_PAIR}.",
                    markup=False,
                    highlight=False,
                )
            target, its_draft = named(model)
            pair = Pair(
                model=target,
                draft=None if no_draft else draft_model or its_draft,
                draft_process=not no_draft_process,
                device=device.value,
                dtype=dtype.value,
                weights=weights.value,
                threads=threads_verifier,
                draft_threads=threads_draft,
                generation_config=not no_generation_config,
            )
            pairs = (pair,)
        ports = {"gateway": gateway_port, "prefix-cache": prefix_cache_port, "adapter-store": adapter_store_port}
        settings = SystemSettings(
            models=pairs,
            host=host,
            ports={**ports, **named_ports(pairs, verifier_port, draft_port)},
            prefix_cache=not no_prefix_cache,
            cache_folder=cache_folder,
            adapter_store=not no_adapters,
            adapter_folder=adapter_folder or user_adapters(),
            database=database,
            log_level=log_level,
            metrics=metrics,
            certificates=None if tls is None else CertificateFolder(tls.absolute()),
            restart=True,
        )
    except LaunchError as error:
        fail(str(error))
    raise typer.Exit(asyncio.run(keep_running(settings, err)))
