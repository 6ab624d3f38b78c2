"""Checks of a system as a whole: who is let in, versions, clocks, disks, connections."""

import re
from collections.abc import Iterator
from ipaddress import ip_address

from paceline.address import is_secure
from paceline.cli.doctor.certificate_checks import check_certificates, is_encrypted
from paceline.cli.doctor.finding import Finding, ok, warning, wrong
from paceline.cli.doctor.names import name_of
from paceline.cli.doctor.report import Report
from paceline.v1 import operations_pb2 as pb

_AWAY = pb.SERVICE_STATE_AWAY
_OFF_SECONDS, _FAR_OFF_SECONDS = 2.0, 60.0
"""Clocks that differ by more are told of; by as much more, tokens and keys end at another time than was meant."""
_FULL_BYTES, _LITTLE_BYTES, _LITTLE_SHARE = 256 << 20, 2 << 30, 0.05
_GIB = 1 << 30
_SCHEME = re.compile(r"^(?:[a-z0-9.+-]+://|ipv4:|ipv6:|dns:)/*")
"""What a gRPC target may have before its host."""
_ROOM = {
    "database": "keys, usage and batches cannot be written any more; make room there, or move `database` elsewhere",
    "blocks": "computed prompts are not kept there any more; make room, or lower the prefix cache's `disk_bytes`",
    "adapters": "adapters cannot be uploaded any more; make room there, or delete some (`paceline adapters delete`)",
}


def check_system(report: Report) -> Iterator[Finding]:
    """All of these checks; few where the gateway does not tell of itself."""
    yield ok("gateway", f"answers at {report.address}")
    status = report.status
    if status is None:
        yield _untold(report)
        return
    yield _access(status.gateway)
    yield from _versions(report, status)
    yield from _clocks(report, status)
    yield from _disks(status)
    yield from check_certificates(status)
    yield _connections(report, status)


def _untold(report: Report) -> Finding:
    if not report.is_denied:
        do = "the gateway's log says more"
        if report.is_old:
            do = "a gateway of the version of this command tells: restart it with that"
        return wrong("gateway", f"it does not say how it and its services fare: {report.untold}", do)
    if report.has_key:
        do = "make a key with `paceline keys create --scope admin`, and put it into PACELINE_API_KEY"
        return wrong("access", f"what follows is little: {report.untold}", do)
    do = "`paceline keys first` makes a key of all scopes on the gateway's machine; put it into PACELINE_API_KEY"
    return wrong("access", f"what follows is little: {report.untold}", do)


def _access(gateway: pb.GatewayStatus) -> Finding:
    if gateway.admission == pb.ADMISSION_KEYS:
        return ok("access", "callers need an API key")
    if gateway.admission == pb.ADMISSION_UNSPECIFIED:
        do = "see that it runs, and that the gateway reaches it; until then what is known of keys is used for a while"
        return wrong("database", "the gateway's database does not answer", do)
    if gateway.admission == pb.ADMISSION_PROXY:
        return ok("access", "callers are who the proxy in front says")
    if not gateway.is_exposed:
        return ok("access", "whoever is on the gateway's machine is let in, and nobody from elsewhere")
    do = "`paceline keys first` makes an API key; then leave out the setting `anonymous`"
    return wrong("access", "the gateway listens beyond its machine, and whoever finds it is served without a key", do)


def _versions(report: Report, status: pb.GetStatusResponse) -> Iterator[Finding]:
    gateway = status.gateway.version
    different = []
    if report.version != gateway:
        different.append(f"this command is {report.version}")
    for service in status.services:
        if service.version and service.version != gateway:
            different.append(f"the {name_of(service)} is {service.version}")
        elif not service.version and service.state != pb.SERVICE_STATE_AWAY:
            different.append(f"the {name_of(service)} is too old to say")
    if different:
        do = f"install {gateway} everywhere, and restart what runs another"
        yield warning("versions", f"the gateway is {gateway}, and {', '.join(different)}", do)
    else:
        yield ok("versions", f"all are {gateway}")


def _clocks(report: Report, status: pb.GetStatusResponse) -> Iterator[Finding]:
    """A clock is known to half of a round trip: only what is beyond that counts."""
    known = [("the gateway's clock", report.clock_offset, report.round_trip, "this machine's")]
    known += [
        (
            f"the clock of the {name_of(service)}",
            service.clock_offset_seconds,
            service.round_trip_seconds,
            "the gateway's",
        )
        for service in status.services
        if service.HasField("clock_offset_seconds")
    ]
    is_off = False
    for whose, offset, round_trip, other in known:
        certain = abs(offset) - round_trip / 2
        if certain < _OFF_SECONDS:
            continue
        is_off = True
        make = wrong if certain >= _FAR_OFF_SECONDS else warning
        direction = "ahead of" if offset > 0 else "behind"
        do = "have both machines take their time from the same servers (chrony, systemd-timesyncd)"
        yield make(
            "clock", f"{whose} is {abs(offset):.1f} s {direction} {other}: tokens and keys end early or late", do
        )
    if not is_off:
        yield ok("clock", "all clocks agree" if len(known) > 1 else "the gateway's clock agrees with this machine's")


def _disks(status: pb.GetStatusResponse) -> Iterator[Finding]:
    places = [("gateway", disk) for disk in status.gateway.disks]
    places += [(name_of(service), disk) for service in status.services for disk in service.disks]
    for whose, disk in places:
        check, do = f"disk of {disk.use}", _ROOM.get(disk.use, "make room there")
        if not disk.total_bytes:
            yield wrong(check, f"the folder of the {whose} cannot be looked at", "see that it is there and can be read")
            continue
        says = f"{disk.free_bytes / _GIB:.1f} of {disk.total_bytes / _GIB:.1f} GiB are free ({whose})"
        if disk.free_bytes < _FULL_BYTES:
            yield wrong(check, says, do)
        elif disk.free_bytes < min(_LITTLE_BYTES, _LITTLE_SHARE * disk.total_bytes):
            yield warning(check, says, f"once it is full, {do}")
        else:
            yield ok(check, says)


def _connections(report: Report, status: pb.GetStatusResponse) -> Finding:
    asked = {report.address: is_secure(report.address)}
    asked |= {each.address: is_encrypted(each.certificates) for each in status.services if each.state != _AWAY}
    beyond = [address for address, is_safe in asked.items() if not is_safe and _leaves(address)]
    if beyond:
        do = "make certificates (`paceline certs make`), or put a mesh with TLS between machines"
        return warning("connections", f"not encrypted, and they go from machine to machine (to {beyond[0]})", do)
    if all(asked.values()):
        return ok("connections", "all are encrypted")
    if any(asked.values()):
        return ok("connections", "those that leave their machine are encrypted")
    return ok("connections", "not encrypted, and none leaves its machine")


def _leaves(address: str) -> bool:
    """Whether a gRPC target is on another machine, as far as its text tells."""
    host = _SCHEME.sub("", address).rpartition(":")[0].strip("[]/")
    if address.startswith("unix:") or host == "localhost":
        return False
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return True
