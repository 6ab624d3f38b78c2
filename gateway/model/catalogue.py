"""The models that a gateway serves, by name."""

import asyncio
from collections.abc import Iterator, Sequence

from gateway.model.served_model import ServedModel
from paceline.errors import InvalidArgumentError, NotFoundError


class Catalogue:
    """All models of one gateway."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.id: model for model in sorted(models, key=lambda model: model.id)}

    def __iter__(self) -> Iterator[ServedModel]:
        """All models, ordered by id."""
        return iter(self._models.values())

    def get(self, name: str) -> ServedModel:
        """The model that a request names; empty names the only one there is.

        Raises NotFoundError when there is none of that name, InvalidArgumentError when one has to be named.
        """
        names = ", ".join(map(repr, self._models))
        if not name:
            if len(self._models) > 1:
                raise InvalidArgumentError("model", f"must be one of {names}")
            return next(iter(self))
        if name not in self._models:
            raise NotFoundError("model", name, f"this gateway serves {names}")
        return self._models[name]

    async def ready(self) -> None:
        """Waits until one of the models can be asked for."""
        waits = [asyncio.create_task(model.ready()) for model in self]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def close(self) -> None:
        """Ends all channels."""
        for model in self:
            await model.close()
