"""`paceline certs`: certificates of a system's services, by an authority of one's own, for development."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from paceline.cli.serve import SERVE, reach
from paceline.cli.terminal import AsJson, fail, out

if TYPE_CHECKING:
    from services.local.authority import Kept

certs = typer.Typer(no_args_is_help=True, help="Certificates of a system's services, for development.")
Folder = Annotated[Path, typer.Argument(help="Folder of the certificates.")]
Days = Annotated[float, typer.Option(min=0.001, help="For how long they hold.")]
_AUTHORITY_DAYS = 3650.0
_DAY_SECONDS = 86400.0


@certs.command()
def make(
    folder: Folder,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Host or address that a certificate is for beside its own name: HOST, of the gateway, or "
            "verifier=HOST. May be repeated."
        ),
    ] = None,
    days: Days = 90,
    authority_days: Annotated[float, typer.Option(min=0.001, help="For how long the authority holds.")] = (
        _AUTHORITY_DAYS
    ),
    trust_domain: Annotated[str, typer.Option(help="Certificates name spiffe://TRUST_DOMAIN/verifier.")] = "paceline",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replaces all that is there, the authority too.")] = (
        False
    ),
) -> None:
    """Makes an authority and a certificate for each service and for clients. What is there already is kept."""
    with _certificates():
        from services.local.certificates import make_certificates

        kept = make_certificates(
            folder, name or (), days=days, authority_days=authority_days, trust_domain=trust_domain, overwrite=overwrite
        )
    _show(kept)
    if all(not each.is_new for each in kept):
        out.print("All of them were there. `paceline certs renew` gives them more time, --overwrite makes new ones.")


@certs.command()
def renew(
    folder: Folder,
    within: Annotated[float, typer.Option(min=0, help="Renews those that end within so many days.")] = 30,
    days: Days = 90,
) -> None:
    """Replaces certificates that end soon by new ones of the same names; processes go on with them by themselves."""
    with _certificates():
        from services.local.certificates import renew_certificates

        done = renew_certificates(folder, within=within, days=days)
    _show(done)


@certs.command()
def show(folder: Folder, as_json: AsJson = False) -> None:
    """Says whose certificates there are, for which names, and how long they hold."""
    with _certificates():
        from services.local.certificates import certificates_of

        found = list(certificates_of(folder))
    if as_json:
        plain = [
            {"of": each.what, "file": str(each.path), "names": list(each.facts.names),
             "not_before": each.facts.not_before.isoformat(), "not_after": each.facts.not_after.isoformat()}
            for each in found
        ]  # fmt: skip
        out.print(json.dumps(plain, indent=2))
    else:
        _show(found)


@contextmanager
def _certificates() -> Iterator[None]:
    """What goes wrong in the block becomes a line and exit code 1."""
    reach(SERVE)
    from services.local.authority import CertificatesError

    try:
        yield
    except CertificatesError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename} cannot be written: {error.strerror}")


def _show(kept: "Sequence[Kept]") -> None:
    table = Table("of", "", "until", "names", "file", box=None)
    for each in kept:
        left = (each.facts.not_after - datetime.now(UTC)).total_seconds() / _DAY_SECONDS
        until = f"{each.facts.not_after:%Y-%m-%d %H:%M} UTC" if left > 0 else "expired"
        table.add_row(each.what, "new" if each.is_new else "", until, ", ".join(each.facts.names), str(each.path))
    out.print(table)
