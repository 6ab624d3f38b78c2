"""What a gateway says of a system in which nothing is wrong."""

import pytest

from paceline.cli.doctor.report import Report
from paceline.v1 import model_pb2
from paceline.v1 import operations_pb2 as pb

GIB = 1 << 30


def model_info(name: str, **more: object) -> model_pb2.ModelInfo:
    known = {"revision_digest": "r1", "vocabulary_digest": "v1", "vocab_size": 256, "max_context_tokens": 512}
    shown = {"architecture": "LlamaForCausalLM", "dtype": "bfloat16", "device": "cpu"}
    return model_pb2.ModelInfo(id=name, **{**known, **shown, **more})  # type: ignore[arg-type]


def service_status(role: "pb.ServiceRole.ValueType", port: int, **more: object) -> pb.ServiceStatus:
    known = {"state": pb.SERVICE_STATE_READY, "version": "1.0", "clock_offset_seconds": 0.0, "takes_adapters": True}
    address = f"127.0.0.1:{port}"
    return pb.ServiceStatus(role=role, address=address, **{**known, **more})  # type: ignore[arg-type]


@pytest.fixture
def report() -> Report:
    """A system in which nothing is wrong."""
    target, draft = model_info("code"), model_info("small")
    load = model_pb2.SpeculationLoad(num_rows=4, draft_revision_digest="r1", way=model_pb2.SPECULATION_WAY_DRAFT)
    state = model_pb2.SpeculationState(loads=[load], acceptance=0.8, num_acceptance_rounds=1000)
    gateway = pb.GatewayStatus(version="1.0", admission=pb.ADMISSION_KEYS)
    gateway.disks.add(use="database", free_bytes=50 * GIB, total_bytes=100 * GIB)
    services = [
        service_status(pb.SERVICE_ROLE_VERIFIER, 7102, model="code", model_info=target),
        service_status(pb.SERVICE_ROLE_DRAFT, 7101, model="code", model_info=draft),
        service_status(pb.SERVICE_ROLE_PREFIX_CACHE, 7103),
        service_status(pb.SERVICE_ROLE_ADAPTER_STORE, 7104),
    ]
    return Report(
        address="127.0.0.1:7100",
        version="1.0",
        models=[model_pb2.Model(target=target, draft=draft, available=True)],
        speculation={"code": [state]},
        status=pb.GetStatusResponse(gateway=gateway, services=services),
    )
