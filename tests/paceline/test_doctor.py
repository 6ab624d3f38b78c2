"""What `paceline doctor` makes of what a gateway says: each judgement, from a report of a system that is well."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from paceline.cli.doctor.finding import Finding, Mark
from paceline.cli.doctor.model_checks import check_models
from paceline.cli.doctor.report import Report
from paceline.cli.doctor.system_checks import check_system
from paceline.v1 import adapter_pb2, model_pb2
from paceline.v1 import operations_pb2 as pb
from support.report import GIB, report

__all__ = ["report"]


def judged(report: Report) -> list[Finding]:
    return [*check_system(report), *check_models(report)]


def faults(report: Report) -> list[Finding]:
    """What is not well; each such finding says what to do."""
    found = [finding for finding in judged(report) if finding.mark is not Mark.OK]
    assert all(finding.do for finding in found)
    return found


def test_a_system_that_is_well_has_no_faults(report: Report) -> None:
    assert not faults(report)
    assert len(judged(report)) >= 10


Change = Callable[[Report], object]


def _service_of(report: Report, role: "pb.ServiceRole.ValueType") -> pb.ServiceStatus:
    assert report.status is not None
    return next(service for service in report.status.services if service.role == role)


def _set(message: object, changes: dict[str, object]) -> None:
    for name, value in changes.items():
        setattr(message, name, value)


def _changes(find: Callable[[Report], object]) -> Callable[..., Change]:
    """Makes changes of a part of a report, by the names of its fields."""
    return lambda **changes: lambda report: _set(find(report), changes)


_verifier = _changes(lambda report: _service_of(report, pb.SERVICE_ROLE_VERIFIER))
_draft = _changes(lambda report: _service_of(report, pb.SERVICE_ROLE_DRAFT))
_draft_of_model = _changes(lambda report: _service_of(report, pb.SERVICE_ROLE_DRAFT).model_info)
_cache = _changes(lambda report: _service_of(report, pb.SERVICE_ROLE_PREFIX_CACHE))
_store = _changes(lambda report: _service_of(report, pb.SERVICE_ROLE_ADAPTER_STORE))
_gateway = _changes(lambda report: report.status and report.status.gateway)
_disk = _changes(lambda report: report.status and report.status.gateway.disks[0])
_state = _changes(lambda report: report.speculation["code"][0])


def _disk_of_cache(report: Report) -> None:
    _service_of(report, pb.SERVICE_ROLE_PREFIX_CACHE).disks.add(use="blocks", free_bytes=1 << 20, total_bytes=GIB)


def _another_verifier(**changes: object) -> Change:
    def change(report: Report) -> None:
        assert report.status is not None
        more = copy.deepcopy(_service_of(report, pb.SERVICE_ROLE_VERIFIER))
        _set(more, {"address": "127.0.0.1:7112", **changes})
        report.status.services.append(more)

    return change


def _other_revision(report: Report) -> None:
    _another_verifier()(report)
    assert report.status is not None
    report.status.services[-1].model_info.revision_digest = "r2"


def _adapter(**more: str) -> Change:
    return lambda report: report.adapters.append(adapter_pb2.Adapter(name="mine", model="code", **more))


def _with(*changes: Change) -> Change:
    def change(report: Report) -> None:
        for each in changes:
            each(report)

    return change


def _speculation_off(report: Report) -> None:
    state = report.speculation["code"][0]
    state.loads[0].way = model_pb2.SPECULATION_WAY_OFF
    state.decisions.add(reason="off at 4 rows: draft 0.78 +- 0.03 over 6 windows")


def _away(report: Report) -> None:
    _verifier(state=pb.SERVICE_STATE_AWAY, problem="UNAVAILABLE: refused")(report)
    report.models[0].available = False
    report.speculation.clear()


WARNING, WRONG = Mark.WARNING, Mark.WRONG
OTHER = "the tokenizer of small is another than the model's"
FAULTS: dict[str, tuple[Change, Mark, str, str]] = {
    "a draft of another tokenizer": (
        _draft(state=pb.SERVICE_STATE_UNSUITED, problem=OTHER),
        WRONG,
        f"draft at 127.0.0.1:7101 is not used: {OTHER}",
        "whose tokenizer.json is the target's",
    ),
    "a draft that is away": (_draft(state=pb.SERVICE_STATE_AWAY), WARNING, "does not answer", "see that it runs"),
    "a draft that loads": (_draft(state=pb.SERVICE_STATE_NOT_READY), WARNING, "cannot be used yet", "wait until"),
    "a draft without a tokenizer": (
        _draft_of_model(vocabulary_digest=""),
        WARNING,
        "whether they are the same cannot be told",
        "tokenizer.json",
    ),
    "a draft of a shorter context": (
        _draft_of_model(max_context_tokens=128),
        WARNING,
        "takes 128 tokens and the target 512",
        "longer context",
    ),
    "an adapter's part that the draft cannot take": (
        _with(_adapter(draft_digest="d"), _draft(takes_adapters=False)),
        WARNING,
        "cannot take its part of 'mine'",
        "adapter_store",
    ),
    "adapters that the verifier cannot take": (
        _with(_adapter(), _verifier(takes_adapters=False)),
        WRONG,
        "takes no adapters, and there are 1",
        "adapter_store",
    ),
    "no live verifier": (
        _away,
        WRONG,
        r"does not answer \(UNAVAILABLE: refused\), and no other serves",
        "see that it runs",
    ),
    "one of two verifiers is away": (
        _another_verifier(state=pb.SERVICE_STATE_AWAY),
        WARNING,
        "7112 does not answer .*the others serve",
        "see that it runs",
    ),
    "verifiers of two revisions": (_other_revision, WARNING, "different revisions", "restart those with the old"),
    "little acceptance": (_state(acceptance=0.3), WARNING, "takes 30%.*a round wins 0.4 tokens", "family"),
    "speculation that does not pay": (
        _speculation_off,
        WARNING,
        r"off at every load.*\(off at 4 rows: draft 0.78",
        "paceline stats",
    ),
    "another version of a service": (_cache(version="0.9"), WARNING, "prefix cache at .* is 0.9", "install 1.0"),
    "a service that is too old to say": (
        _store(version=""),
        WARNING,
        "adapter store at .* is too old to say",
        "install",
    ),
    "another version of the gateway": (_gateway(version="0.9"), WARNING, "this command is 1.0", "install 0.9"),
    "a clock that is behind": (
        _verifier(clock_offset_seconds=-5.0),
        WARNING,
        "5.0 s behind the gateway's",
        "from the same servers",
    ),
    "a clock that is far ahead": (_draft(clock_offset_seconds=90.0), WRONG, "90.0 s ahead of", "from the same servers"),
    "a full disk": (_disk(free_bytes=1 << 20), WRONG, "0.0 of 100.0 GiB are free", "make room"),
    "a disk that fills up": (_disk(free_bytes=GIB), WARNING, "1.0 of 100.0 GiB are free", "once it is full"),
    "a folder that is gone": (_disk(total_bytes=0), WRONG, "cannot be looked at", "see that it is there"),
    "a full disk of the prefix cache": (_disk_of_cache, WRONG, "prefix cache at", "disk_bytes"),
    "a prefix cache that is away": (_cache(state=pb.SERVICE_STATE_AWAY), WARNING, "prompts are computed anew", "runs"),
    "an adapter store that is away": (
        _store(state=pb.SERVICE_STATE_AWAY),
        WRONG,
        "that are not loaded yet fail",
        "runs",
    ),
    "everybody let in from elsewhere": (
        _gateway(admission=pb.ADMISSION_EVERYBODY, is_exposed=True),
        WRONG,
        "served without a key",
        "paceline keys first",
    ),
    "connections between machines": (_cache(address="10.0.0.7:7103"), WARNING, "to 10.0.0.7:7103", "TLS"),
}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_each_fault_is_told_alone_and_with_what_to_do(report: Report, name: str) -> None:
    change, mark, says, do = FAULTS[name]
    change(report)
    (found,) = faults(report)
    assert found.mark is mark
    assert re.search(says, found.says), found
    assert do in found.do, found


def test_without_the_gateways_word_the_list_of_models_is_judged(report: Report) -> None:
    untold = replace(report, status=None, untold="not for you", is_denied=True)
    (access,) = faults(untold)
    assert (access.check, access.mark) == ("access", Mark.WRONG)
    assert "paceline keys first" in access.do
    assert "--scope admin" in faults(replace(untold, has_key=True))[0].do
    untold.models[0].draft_problem = OTHER
    assert [finding.says for finding in faults(untold)[1:]] == [f"its draft is not used: {OTHER}"]
    untold.models[0].available = False
    assert "no live verifier" in faults(untold)[1].says


def test_of_a_gateway_that_does_not_know_the_question_its_age_is_told(report: Report) -> None:
    (old,) = faults(replace(report, status=None, untold="unknown method", is_old=True))
    assert "unknown method" in old.says
    assert "restart it" in old.do


def test_what_is_not_measured_yet_is_no_fault(report: Report) -> None:
    report.speculation["code"][0].CopyFrom(model_pb2.SpeculationState(acceptance=0.1, num_acceptance_rounds=3))
    assert not faults(report)
    assert any("was not measured yet" in finding.says for finding in judged(report))


def test_a_slow_answer_says_nothing_of_a_clock(report: Report) -> None:
    assert faults(replace(report, clock_offset=5.0))
    assert not faults(replace(report, clock_offset=5.0, round_trip=7.0))


def test_a_database_that_is_away_is_named_and_no_version_is_blamed(report: Report) -> None:
    (lost,) = faults(replace(report, status=None, untold="the database cannot be used for now"))
    assert "the database cannot be used" in lost.says
    assert "version" not in lost.do
    assert report.status is not None
    report.status.gateway.admission = pb.ADMISSION_UNSPECIFIED
    (away,) = faults(report)
    assert (away.check, away.mark, away.says) == ("database", Mark.WRONG, "the gateway's database does not answer")


@pytest.mark.parametrize(
    ("address", "is_away"),
    [
        ("127.0.0.1:7102", False), ("ipv4:127.0.0.1:7102", False), ("ipv6:[::1]:7102", False), ("[::1]:7102", False),
        ("dns:///localhost:7102", False), ("unix:/run/draft", False),
        ("10.0.0.2:7102", True), ("dns:///draft:7102", True), ("ipv4:10.0.0.2:7102", True),
    ],
)  # fmt: skip
def test_what_goes_from_machine_to_machine_is_told(report: Report, address: str, is_away: bool) -> None:
    assert report.status is not None
    report.status.services[1].address = address
    assert any("machine to machine" in fault.says for fault in faults(report)) == is_away
