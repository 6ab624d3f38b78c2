"""All certificates of a folder: made, shown, renewed."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from services.common.certificates import days_left, facts_of
from services.common.identities import Identity
from services.local.authority import Authority, CertificatesError, Kept, general_name, load_certificate
from services.local.certificate_folder import CertificateFolder

AUTHORITY_DAYS = 3650.0


def make_certificates(
    path: Path,
    names: Sequence[str],
    *,
    days: float,
    authority_days: float = AUTHORITY_DAYS,
    trust_domain: str = "paceline",
    overwrite: bool = False,
) -> list[Kept]:
    """Makes an authority and a certificate of each identity, those that are missing or, if told, all.

    `names` are hosts beside an identity's own: HOST of the gateway, or verifier=HOST. Raises CertificatesError.
    """
    folder, further = CertificateFolder(path), _by_identity(names)
    if overwrite or not (folder.ca.exists() or folder.ca_key.exists()):
        authority = Authority.create(folder, authority_days, overwrite=overwrite)
    else:
        authority = Authority.load(folder)
    return [
        authority.issue(identity, further[identity], days, trust_domain, overwrite=overwrite) for identity in Identity
    ]


def renew_certificates(path: Path, *, within: float, days: float) -> list[Kept]:
    """Renews what ends within so many days; returns all that there is. Raises CertificatesError."""
    authority, found = Authority.load(CertificateFolder(path)), []
    for each in certificates_of(path):
        if days_left(each.facts) > within:
            found.append(each)
        elif each.what == "ca":
            found.append(authority.renew_itself(AUTHORITY_DAYS))
        else:
            found.append(authority.renew(Identity(each.what), days))
    return found


def certificates_of(path: Path) -> Iterator[Kept]:
    """All certificates of a folder, the authority's first. Raises CertificatesError."""
    folder = CertificateFolder(path)
    yield Kept("ca", folder.ca, facts_of(load_certificate(folder.ca)), is_new=False)
    for identity in Identity:
        if (file := folder.certificate(identity)).exists():
            yield Kept(identity, file, facts_of(load_certificate(file)), is_new=False)


def _by_identity(names: Sequence[str]) -> dict[str, list[str]]:
    """Names by whose they are; those that say it of none are the gateway's."""
    found: dict[str, list[str]] = defaultdict(list)
    for each in names:
        whose, _, host = each.rpartition("=")
        if whose and whose not in [*Identity]:
            raise CertificatesError(f"{each}: there is no {whose}; it is one of {', '.join(Identity)}")
        general_name(host)
        found[whose or Identity.GATEWAY].append(host)
    return found
