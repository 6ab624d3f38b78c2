"""`paceline doctor` as it is typed: what it prints, and how it ends."""

import json
from importlib.metadata import version

from paceline.cli.doctor.report import Report
from paceline.v1 import operations_pb2 as pb
from support.gateway import FakeGateway, serve_gateway
from support.report import report
from support.typed import typed

__all__ = ["report"]

OTHER = "the tokenizer of small is another than the model's"


async def test_the_command_ends_with_1_where_something_is_wrong_and_with_0_where_nothing_is(report: Report) -> None:
    gateway = FakeGateway(models=report.models)
    async with serve_gateway(gateway) as address:
        done = await typed("doctor", "--address", address, PACELINE_API_KEY="pcl_a_b")
        assert done.code == 1, done.err
        assert "wrong    access" in done.out
        assert "--scope admin" in done.out
        assert report.status is not None
        gateway.status = report.status
        for service in gateway.status.services:
            service.version = version("paceline")
        gateway.status.gateway.version = version("paceline")
        done = await typed("doctor", "--address", address)
        assert done.code == 0, done.out
        assert "0 wrong, 0 warnings" in done.out
        draft = gateway.status.services[1]
        draft.state, draft.problem = pb.SERVICE_STATE_UNSUITED, OTHER
        done = await typed("doctor", "--json", "--address", address)
        assert done.code == 1
        said = json.loads(done.out)
        assert not said["ok"]
        assert [each["says"] for each in said["findings"] if each["mark"] == "wrong"] == [
            f"the draft at 127.0.0.1:7101 is not used: {OTHER}"
        ]


async def test_where_nobody_answers_what_to_type_is_told() -> None:
    done = await typed("doctor", "--address=127.0.0.1:1")
    assert done.code == 1
    assert "no gateway answers at 127.0.0.1:1" in done.out
    assert "`paceline up` starts one" in done.out


async def test_an_address_that_cannot_be_one_is_a_mistake_in_typing() -> None:
    assert (await typed("doctor", "--address", "somewhere")).code == 2
