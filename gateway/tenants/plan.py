"""What a tenant may use."""

from dataclasses import asdict, dataclass

from paceline.errors import InvalidArgumentError
from paceline.v1 import admin_pb2

_MAX_PRIORITY = 100
_MAX_WEIGHT = 1000.0
_MAX_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class Plan:
    """Limits of a tenant; None is no limit. The names are those of the table's columns."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_streams: int | None = None
    max_batch_items: int | None = None
    max_batch_tokens: int | None = None
    max_monthly_cost: int | None = None
    """Billionths of the currency."""
    max_priority: int | None = None
    """Largest priority of a request; None is 0."""
    weight: float | None = None
    """Share among tenants that wait for each other; None is 1."""

    @classmethod
    def read(cls, message: admin_pb2.Plan) -> "Plan":
        """What a message says. Raises InvalidArgumentError."""
        given = {field.name.removesuffix("_nanos"): value for field, value in message.ListFields()}
        for name, value in given.items():
            if name == "weight":
                in_range = 0 < value <= _MAX_WEIGHT
            elif name == "max_priority":
                in_range = abs(value) <= _MAX_PRIORITY
            else:
                in_range = value < _MAX_LIMIT
            if not in_range:
                raise InvalidArgumentError(f"plan.{name}", f"{value} is out of range")
        return cls(**given)

    def message(self) -> admin_pb2.Plan:
        """The message that says so."""
        values = asdict(self)
        values["max_monthly_cost_nanos"] = values.pop("max_monthly_cost")
        return admin_pb2.Plan(**values)

    def priority(self, asked: int) -> int:
        """The priority of a request that asks for one."""
        return min(asked, self.max_priority or 0)


NO_LIMITS = Plan()
LOCAL_PLAN = Plan(max_priority=_MAX_PRIORITY)
"""Where all callers are one, its requests are ordered as they say."""
