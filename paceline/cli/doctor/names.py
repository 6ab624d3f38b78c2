"""What a service is called where it is spoken of."""

from paceline.cli.doctor.report import Service
from paceline.v1 import operations_pb2 as pb

_ROLES = {
    pb.SERVICE_ROLE_VERIFIER: "verifier",
    pb.SERVICE_ROLE_DRAFT: "draft",
    pb.SERVICE_ROLE_PREFIX_CACHE: "prefix cache",
    pb.SERVICE_ROLE_ADAPTER_STORE: "adapter store",
}


def role_of(service: Service) -> str:
    """What it does."""
    return _ROLES.get(service.role, "service")


def name_of(service: Service) -> str:
    """Its role and where it is."""
    return f"{role_of(service)} at {service.address}"
