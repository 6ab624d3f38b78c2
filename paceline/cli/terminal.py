"""What the commands share: consoles, common options, a connected client, and how they fail."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from typing import Annotated, Any, NoReturn

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from paceline import PacelineError, SyncClient, Tls, TlsError, UnauthenticatedError, UnavailableError
from paceline.address import EXAMPLE, SECURE, is_secure, split, to_target
from paceline.connecting import (
    EXPIRED,
    NO_TLS,
    NOT_YET_VALID,
    OTHER_NAME,
    PLAINTEXT,
    REFUSED_AT_ONCE,
    UNKNOWN_AUTHORITY,
)

# A pipe has no edge: tables are as wide there as their cells.
out = Console(highlight=False, soft_wrap=True, markup=False, width=None if sys.stdout.isatty() else 1000)
err = Console(stderr=True, highlight=False, soft_wrap=True)
DEFAULT_ADDRESS = EXAMPLE


class Place(str):
    """Address of a gateway, and what connections to it are encrypted with."""

    __slots__ = ("tls",)
    tls: Tls

    @classmethod
    def encrypted(cls, address: str, tls: Tls) -> "Place":
        """An address that is asked over encrypted connections."""
        place = cls(address)
        place.tls = tls
        return place


def tls_of(address: str) -> Tls | None:
    """What connections to an address are encrypted with, as the command was told; None: they are in plaintext."""
    return address.tls if isinstance(address, Place) else None


def _address(given: str) -> str:
    """host:port, or https://host:port, or several of them. Raises BadParameter for what cannot be an address."""
    try:
        return ",".join((SECURE if is_secure(each) else "") + to_target(each) for each in split(given))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Address = Annotated[
    str,
    typer.Option(
        help="host:port of the gateway, or https://host:port; several with commas between them.",
        envvar="PACELINE_ADDRESS",
        callback=_address,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Prints JSON, for programs.")]
API_KEY = "PACELINE_API_KEY"
"""Variable of the environment with the key that every command shows; none, no key."""
INTERRUPTED = 130
_OF_CONNECTING = {
    EXPIRED: "whoever runs it renews it, an own authority by `paceline certs renew`",
    NOT_YET_VALID: "see that the clocks of both machines are right",
    UNKNOWN_AUTHORITY: "--ca names the file of its authority",
    OTHER_NAME: "--server-name says which one it has, if that is who you mean",
    PLAINTEXT: "leave https:// and --tls out, unless it should be encrypted",
    NO_TLS: "its log says more",
    REFUSED_AT_ONCE: "",
}
"""What to do where connecting failed, by the reason."""
_NOBODY = ("failed to connect", "dns resolution failed")
"""What gRPC itself says where nothing listens."""


@contextmanager
def connected(address: str) -> Iterator[SyncClient]:
    """A client of the gateway at an address, with the API key of the environment. What goes wrong in the block becomes
    a line and exit code 1.
    """
    try:
        with SyncClient(address, key=os.environ.get(API_KEY), tls=tls_of(address)) as client:
            yield client
    except TlsError as error:
        fail(str(error))
    except PacelineError as error:
        fail(in_words(error, address))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def print_json(found: Message | Sequence[Message]) -> None:
    """Prints a message, or several as a list, with the names that the protos have."""
    plain = [_plain(each) for each in found] if isinstance(found, Sequence) else _plain(found)
    out.print(json.dumps(plain, indent=2))


def money(nanos: int) -> str:
    """An amount given in billionths, with two digits or as many as it takes to be seen."""
    amount = nanos / 1e9
    return f"{amount:.2f}" if amount >= 1 or not nanos else f"{amount:.4g}"


def nanos(amount: float | None) -> int | None:
    """An amount in billionths, as messages have it."""
    return None if amount is None else round(amount * 1e9)


def day(moment: Timestamp) -> str:
    """When something was, to the minute, in the local time."""
    return moment.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def fail(message: str) -> NoReturn:
    """Ends the process with a line and exit code 1."""
    err.print(message, style="red", markup=False)
    raise typer.Exit(1)


def _plain(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def in_words(error: PacelineError, address: str) -> str:
    """What went wrong with a gateway at an address, in a line for the user."""
    message = str(error)
    if isinstance(error, UnavailableError) and message.lower().startswith(_NOBODY):
        return f"no gateway answers at {address}; `paceline up` starts one, and --address names another"
    if error.reason in _OF_CONNECTING:
        return _of_encryption(error, address)
    if isinstance(error, UnauthenticatedError) and API_KEY not in os.environ:
        return f"{message}; the commands take it from the environment variable {API_KEY}"
    if error.retry_after_seconds is not None:
        return f"{message}; try again in {error.retry_after_seconds:.0f} s"
    return message


def _of_encryption(error: PacelineError, address: str) -> str:
    """Why no encrypted connection came about, or none in plaintext, and what to do."""
    tls = tls_of(address)
    if error.reason != REFUSED_AT_ONCE:
        return f"{error}; {_OF_CONNECTING[error.reason]}"
    if tls is None:
        return f"{address} takes no connection in plaintext; https:// before the address, or --tls, encrypts"
    if tls.certificate is None:
        return f"{address} asks for a client's certificate; --cert and --cert-key show one"
    return f"{address} does not accept {tls.certificate}; it has expired, or another authority signed it"
