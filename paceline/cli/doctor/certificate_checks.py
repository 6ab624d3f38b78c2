"""Checks of the certificates of a system: whether they hold, for how long, and for whom."""

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from paceline.cli.doctor.finding import Finding, ok, warning, wrong
from paceline.cli.doctor.names import name_of, role_of
from paceline.v1 import operations_pb2 as pb

_CHECK = "certificates"
_SOON_DAYS = 14
_DAY_SECONDS = 86400.0
_SERVER = "server"
_SPIFFE = "spiffe://"
_RENEW = "renew it: `paceline certs renew`, where `paceline certs make` made it; nothing has to be restarted"


def is_encrypted(certificates: Iterable[pb.Certificate]) -> bool:
    """Whether those who call a process with these do so over encrypted connections."""
    return any(each.use == _SERVER for each in certificates)


def check_certificates(status: pb.GetStatusResponse) -> Iterator[Finding]:
    """All of these checks, as far as processes say what they show; none where nothing is encrypted."""
    now = status.gateway.clock_seconds or time.time()
    shown = [("gateway", "gateway", False, status.gateway.certificates)]
    shown += [(name_of(each), role_of(each).replace(" ", "-"), True, each.certificates) for each in status.services]
    found = [
        finding
        for whose, identity, is_inner, certificates in shown
        for finding in _check(whose, identity, certificates, now, is_inner=is_inner)
    ]
    yield from found
    ends = [each.not_after_seconds for _, _, _, certificates in shown for each in certificates]
    if ends and not found:
        days = (min(ends) - now) / _DAY_SECONDS
        yield ok(_CHECK, f"all {len(ends)} hold, and name whose they are; the first ends in {days:.0f} days")


def _check(
    whose: str, identity: str, certificates: Sequence[pb.Certificate], now: float, *, is_inner: bool
) -> Iterator[Finding]:
    for each in certificates:
        if not each.not_after_seconds:
            do = "see that its file is there and can be read: a process goes on with what it read before, until it ends"
            yield wrong(_CHECK, f"that of the {whose} cannot be read any more", do)
        elif now >= each.not_after_seconds:
            yield wrong(_CHECK, f"that of the {whose} has expired ({_day(each.not_after_seconds)})", _RENEW)
        elif now < each.not_before_seconds:
            do = "see that clocks are right, or wait"
            yield wrong(_CHECK, f"that of the {whose} does not hold before {_day(each.not_before_seconds)}", do)
        elif each.not_after_seconds - now < _SOON_DAYS * _DAY_SECONDS:
            yield warning(_CHECK, f"that of the {whose} ends soon ({_day(each.not_after_seconds)})", _RENEW)
        names = [name for name in each.names if name.startswith(_SPIFFE)]
        if each.not_after_seconds and is_inner and [name.rpartition("/")[2] for name in names] != [identity]:
            do = f"give it one that names spiffe://paceline/{identity}, and nobody else"
            yield wrong(_CHECK, f"that of the {whose} names {', '.join(names) or 'no identity'}", do)
        if each.use == _SERVER and is_inner and not each.asks_callers:
            do = "set `server.tls.client_ca`: then it answers those who may call it, and nobody else"
            yield warning(_CHECK, f"the {whose} does not ask who calls it", do)


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
