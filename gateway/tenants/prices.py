"""What requests cost. Amounts are whole billionths of the currency: sums of them are exact."""

from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal

from gateway.database.tables import MONEY
from gateway.settings import GatewaySettings, PriceSettings
from gateway.tenants.kind import Kind
from paceline.v1 import inference_pb2, model_pb2

_MILLION = 1_000_000


class Prices:
    """Prices by model; a model without any costs nothing."""

    def __init__(self, prices: Mapping[str, PriceSettings], currency: str) -> None:
        self._prices = dict(prices)
        self.currency = currency

    @classmethod
    def read(cls, settings: GatewaySettings) -> "Prices":
        """Those of a gateway's settings."""
        priced = {model.id: model.prices for model in settings.models if model.prices is not None}
        return cls(priced, settings.currency)

    def cost(self, model: str, adapter: str, kind: Kind, usage: inference_pb2.Usage) -> int:
        """What a request costs."""
        prices = self._prices.get(model)
        if prices is None:
            return 0
        cached_price = prices.prompt if prices.cached is None else prices.cached
        cached = min(usage.num_cached_tokens, usage.num_prompt_tokens)
        total = (usage.num_prompt_tokens - cached) * prices.prompt + cached * cached_price
        total += usage.num_completion_tokens * prices.completion
        if adapter:
            total *= 1 + Decimal(str(prices.adapter_surcharge))
        if kind is Kind.BATCH:
            total *= 1 - Decimal(str(prices.batch_discount))
        return int((total * MONEY / _MILLION).to_integral_value(ROUND_HALF_EVEN))

    def message(self, model: str) -> model_pb2.Prices | None:
        """What clients are told of a model's prices; None without any."""
        prices = self._prices.get(model)
        if prices is None:
            return None
        return model_pb2.Prices(
            currency=self.currency,
            prompt_nanos=int(prices.prompt * MONEY),
            cached_nanos=int((prices.prompt if prices.cached is None else prices.cached) * MONEY),
            completion_nanos=int(prices.completion * MONEY),
            adapter_surcharge=prices.adapter_surcharge,
            batch_discount=prices.batch_discount,
        )
