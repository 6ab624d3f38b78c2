"""What a gateway says of a running system, put together for the checks."""

import contextlib
import os
import time
from dataclasses import dataclass, field
from importlib.metadata import version

import grpc

from paceline import PacelineError, SyncClient
from paceline.cli.terminal import API_KEY
from paceline.errors import PermissionDeniedError, UnauthenticatedError
from paceline.v1 import adapter_pb2, model_pb2, operations_pb2


@dataclass(frozen=True, slots=True)
class Report:
    """All that the checks judge. Times are in seconds."""

    address: str
    version: str
    """Of the package that this command is of."""
    models: list[model_pb2.Model]
    speculation: dict[str, list[model_pb2.SpeculationState]] = field(default_factory=dict)
    """By model, one entry a verifier that answered."""
    adapters: list[adapter_pb2.Adapter] = field(default_factory=list)
    """Those of the caller."""
    status: operations_pb2.GetStatusResponse | None = None
    """What the gateway says of itself and of its services; None where it does not tell."""
    untold: str = ""
    """Why it does not."""
    has_key: bool = False
    """Whether an API key was shown."""
    is_denied: bool = False
    """Whether it does not tell because the caller may not know."""
    is_old: bool = False
    """Whether it does not tell because it does not know the question."""
    clock_offset: float = 0.0
    """How far the gateway's clock is ahead of the one here."""
    round_trip: float = 0.0
    """How long the gateway took to answer: its clock is known to half of that."""

    def services(self, role: "operations_pb2.ServiceRole.ValueType", model: str = "") -> list["Service"]:
        """The services of a role that work for a model; for all where it is empty."""
        found = [] if self.status is None else self.status.services
        return [service for service in found if service.role == role and service.model == model]


Service = operations_pb2.ServiceStatus


def ask(client: SyncClient, address: str) -> Report:
    """Asks a gateway for everything. Raises PacelineError when it does not answer."""
    models = client.list_models()
    speculation, adapters = {}, []
    for model in models:
        if model.available:
            try:
                speculation[model.target.id] = list(client.get_speculation(model.target.id).verifiers)
            except PacelineError:  # Its verifiers were lost meanwhile, which the gateway's status says.
                continue
    with contextlib.suppress(PacelineError):  # There is no store, or the key is not for it; both are said elsewhere.
        adapters = client.list_adapters()
    status, untold, is_denied, is_old = None, "", False, False
    sent, began = time.time(), time.monotonic()
    try:
        status = client.get_status()
    except PacelineError as error:
        untold, is_denied = str(error), isinstance(error, PermissionDeniedError | UnauthenticatedError)
        is_old = error.code is grpc.StatusCode.UNIMPLEMENTED
    round_trip = time.monotonic() - began
    return Report(
        address=address,
        version=version("paceline"),
        models=models,
        speculation=speculation,
        adapters=adapters,
        status=status,
        untold=untold,
        has_key=API_KEY in os.environ,
        is_denied=is_denied,
        is_old=is_old,
        clock_offset=0.0 if status is None else status.gateway.clock_seconds - (sent + round_trip / 2),
        round_trip=round_trip,
    )
