"""What models and adapters were when a batch was accepted: its items run with that, or fail by name."""

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

from gateway.generation.validation import Request
from gateway.model.catalogue import Catalogue
from gateway.tenants.adapters import Adapters
from gateway.tenants.identity import Caller
from paceline.errors import FailedPreconditionError, NotFoundError

ModelAdapter: TypeAlias = tuple[str, str]
"""Id of a model and name of an adapter."""


class Pinned(NamedTuple):
    """What there is now."""

    text: str
    """JSON, to be kept with the batch."""
    missing: Mapping[ModelAdapter, NotFoundError]
    """Adapters that are not there."""


class Pins:
    """Pins and checks."""

    def __init__(self, catalogue: Catalogue, adapters: Adapters) -> None:
        self._catalogue = catalogue
        self._adapters = adapters

    async def now(self, caller: Caller, adapters: Iterable[ModelAdapter]) -> Pinned:
        """What all models and these adapters stand for now."""
        digests: dict[str, str] = {}
        missing: dict[ModelAdapter, NotFoundError] = {}
        for model, adapter in adapters:
            try:
                resolved = await self._adapters.resolve(caller, self._catalogue.get(model), adapter)
                digests[f"{model}/{adapter}"] = resolved.target
            except NotFoundError as error:
                missing[model, adapter] = error
        revisions = {model.id: model.newest.revision_digest for model in self._catalogue if model.newest is not None}
        return Pinned(json.dumps({"models": revisions, "adapters": digests}), missing)

    async def check(self, pinned: str, caller: Caller, request: Request) -> None:
        """Raises FailedPreconditionError when model or adapter of a request are not what they were."""
        pins = json.loads(pinned)
        model = self._catalogue.get(request.model)
        if (await model.info()).revision_digest != pins["models"].get(model.id):
            raise FailedPreconditionError(f"model {model.id!r} was rolled to another revision", "MODEL_CHANGED")
        if request.adapter:
            resolved = await self._adapters.resolve(caller, model, request.adapter)
            if resolved.target != pins["adapters"].get(f"{model.id}/{request.adapter}"):
                raise FailedPreconditionError(f"adapter {request.adapter!r} is another one now", "ADAPTER_CHANGED")


def adapters_of(pinned: str) -> list[ModelAdapter]:
    """The adapters that a batch was pinned to. Names of adapters hold no slash, ids of models may."""
    names = [name.rpartition("/") for name in json.loads(pinned)["adapters"]]
    return [(model, adapter) for model, _, adapter in names]
