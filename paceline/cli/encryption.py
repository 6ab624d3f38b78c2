"""Options of every command that asks a gateway: what its connections are encrypted with."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.address import SECURE, is_secure, split
from paceline.cli.terminal import Place, fail
from paceline.tls import Tls, TlsError

_ADDRESS = "address"
_PANEL = "Encryption"
_Encrypt = Annotated[
    bool,
    typer.Option("--tls", envvar="PACELINE_TLS", rich_help_panel=_PANEL, help="Encrypts, as https:// does."),
]
_Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca", envvar="PACELINE_CA", rich_help_panel=_PANEL,
        help="Encrypts; PEM file of the authorities that may vouch for the gateway. Default: the public ones.",
    ),
]  # fmt: skip
_Certificate = Annotated[
    Path | None,
    typer.Option(
        "--cert", envvar="PACELINE_CERT", rich_help_panel=_PANEL,
        help="Encrypts; PEM file of the certificate that is shown to the gateway.",
    ),
]  # fmt: skip
_Key = Annotated[
    Path | None,
    typer.Option(
        "--cert-key", envvar="PACELINE_CERT_KEY", rich_help_panel=_PANEL, help="PEM file of that certificate's key."
    ),
]
_ServerName = Annotated[
    str,
    typer.Option(
        "--server-name", envvar="PACELINE_SERVER_NAME", rich_help_panel=_PANEL,
        help="Name that the gateway's certificate must have. Default: the host of its address.",
    ),
]  # fmt: skip
_OPTIONS = tuple(
    inspect.Parameter(f"encryption_{name}", inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for name, annotation, default in (
        ("tls", _Encrypt, False),
        ("ca", _Ca, None),
        ("certificate", _Certificate, None),
        ("key", _Key, None),
        ("server_name", _ServerName, ""),
    )
)


def encrypted(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with these options, whose `address` says what they say; itself where it has no address."""
    signature = inspect.signature(command)
    if _ADDRESS not in signature.parameters:
        return command

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        flag, ca, certificate, key, name = (kwargs.pop(option.name) for option in _OPTIONS)
        address = kwargs[_ADDRESS]
        if flag or ca or certificate or key or name or any(map(is_secure, split(address))):
            try:
                tls = Tls(ca, certificate, key, name)
            except TlsError as error:
                fail(f"{error}: --cert and --cert-key name both")
            address = Place.encrypted(",".join(SECURE + each.removeprefix(SECURE) for each in split(address)), tls)
        return command(*args, **{**kwargs, _ADDRESS: address})

    parameters = [*signature.parameters.values(), *_OPTIONS]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, **{option.name: option.annotation for option in _OPTIONS}}
    return run
