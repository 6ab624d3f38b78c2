"""What `paceline doctor` makes of the certificates that processes say they show."""

import re
import time
from dataclasses import replace

import pytest

from paceline.cli.doctor.finding import Finding, Mark
from paceline.cli.doctor.report import Report
from paceline.cli.doctor.system_checks import check_system
from paceline.v1 import operations_pb2 as pb
from support.report import report

__all__ = ["report"]

DAY = 86400.0
VERIFIER, CACHE = pb.SERVICE_ROLE_VERIFIER, pb.SERVICE_ROLE_PREFIX_CACHE
IDENTITIES = {
    VERIFIER: "verifier",
    pb.SERVICE_ROLE_DRAFT: "draft",
    CACHE: "prefix-cache",
    pb.SERVICE_ROLE_ADAPTER_STORE: "adapter-store",
}


@pytest.fixture
def encrypted(report: Report) -> Report:
    """A system that is well, and shows certificates."""
    assert report.status is not None
    now = report.status.gateway.clock_seconds = time.time()
    holds = {"use": "server", "not_before_seconds": now - DAY, "not_after_seconds": now + 60 * DAY}
    report.status.gateway.certificates.add(names=["gateway.example"], **holds)
    for service in report.status.services:
        names = [f"spiffe://paceline/{IDENTITIES[service.role]}"]
        service.certificates.add(names=names, asks_callers=True, **holds)
    return replace(report, address=f"https://{report.address}")


def certificate(report: Report, role: "pb.ServiceRole.ValueType") -> pb.Certificate:
    assert report.status is not None
    return next(service.certificates[0] for service in report.status.services if service.role == role)


def found(report: Report) -> list[Finding]:
    return [each for each in check_system(report) if each.check in ("certificates", "connections")]


def fault(report: Report) -> Finding:
    (fault,) = (each for each in found(report) if each.mark is not Mark.OK)
    assert fault.do
    return fault


def test_certificates_that_hold_are_said_to(encrypted: Report) -> None:
    certificates, connections = found(encrypted)
    assert certificates.mark is connections.mark is Mark.OK
    assert "all 5 hold, and name whose they are; the first ends in 60 days" in certificates.says
    assert connections.says == "all are encrypted"


def test_of_a_system_in_plaintext_nothing_is_said_of_certificates(report: Report) -> None:
    assert [(each.check, each.mark) for each in found(report)] == [("connections", Mark.OK)]


def test_each_fault_of_a_certificate_is_told_with_what_to_do(encrypted: Report) -> None:
    now = time.time()
    own = certificate(encrypted, CACHE)
    before = pb.Certificate()
    before.CopyFrom(own)
    for changes, mark, says, do in (
        ({"not_after_seconds": now - 1}, Mark.WRONG, "that of the prefix cache at .* has expired", "certs renew"),
        ({"not_after_seconds": now + 3 * DAY}, Mark.WARNING, "that of the prefix cache at .* ends soon", "certs renew"),
        ({"not_before_seconds": now + DAY}, Mark.WRONG, "does not hold before", "clocks"),
        ({"not_after_seconds": 0.0}, Mark.WRONG, "cannot be read any more", "can be read"),
        ({"asks_callers": False}, Mark.WARNING, "does not ask who calls it", "server.tls.client_ca"),
    ):
        own.CopyFrom(before)
        for name, value in changes.items():
            setattr(own, name, value)
        told = fault(encrypted)
        assert told.mark is mark
        assert re.search(says, told.says), told
        assert do in told.do
    own.CopyFrom(before)
    own.names[:] = ["spiffe://paceline/draft"]
    told = fault(encrypted)
    assert "names spiffe://paceline/draft" in told.says
    assert "spiffe://paceline/prefix-cache" in told.do
    own.names[:] = ["cache.example"]
    assert "names no identity" in fault(encrypted).says


def test_what_a_process_shows_to_those_it_calls_is_judged_too(encrypted: Report) -> None:
    assert encrypted.status is not None
    now = time.time()
    encrypted.status.gateway.certificates.add(use="calls", names=["a"], not_after_seconds=now - DAY)
    assert "that of the gateway has expired" in fault(encrypted).says


def test_what_leaves_its_machine_unencrypted_is_told(encrypted: Report) -> None:
    assert encrypted.status is not None
    service = encrypted.status.services[0]
    service.address = "10.0.0.7:7102"
    assert found(encrypted)[-1].says == "all are encrypted"
    assert (
        found(replace(encrypted, address="127.0.0.1:7100"))[-1].says == "those that leave their machine are encrypted"
    )
    del service.certificates[:]
    told = fault(encrypted)
    assert "(to 10.0.0.7:7102)" in told.says
    assert "paceline certs make" in told.do
    service.state = pb.SERVICE_STATE_AWAY  # Nobody knows what it shows.
    assert found(encrypted)[-1].mark is Mark.OK
