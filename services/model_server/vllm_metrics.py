"""What Kubernetes' inference gateways read without being configured: names, labels and meanings are vLLM's.

See https://docs.vllm.ai/en/stable/usage/metrics/ and the model server protocol of the Gateway API Inference Extension,
https://github.com/kubernetes-sigs/gateway-api-inference-extension/tree/main/docs/proposals/003-model-server-protocol.
OpenTelemetry takes no colons in names, so Prometheus gets these beside what comes from there.
"""

import time
from collections import abc
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.engine.engine_loop import EngineLoop
from services.model_server.adapter_slots import AdapterSlots
from services.model_server.streams import OpenStreams

_LABELS = ("model_name", "engine")
_ENGINE = "0"
"""vLLM numbers the engines of a process; here there is one."""


class Drafts(NamedTuple):
    """What a target verified so far."""

    num_drafts: int
    """Rounds with proposed tokens."""
    num_draft_tokens: int
    num_accepted: abc.Mapping[int, int]
    """Accepted tokens by their place in what was proposed, from 0."""


class VllmMetrics(Collector):
    """One engine, as vLLM would show it. It is read by threads of their own, and reads copies."""

    def __init__(
        self,
        model_id: str,
        engine_loop: EngineLoop[Any],
        open_streams: OpenStreams,
        adapters: AdapterSlots | None,
        drafts: abc.Callable[[], Drafts] | None = None,
    ) -> None:
        """`drafts` says what was verified; None where nothing is."""
        self._of = (model_id, _ENGINE)
        self._engine_loop = engine_loop
        self._open_streams = open_streams
        self._adapters = adapters
        self._drafts = drafts

    def describe(self) -> abc.Iterable[Metric]:
        """Nothing: what there is depends on what the engine has."""
        return ()

    def collect(self) -> abc.Iterator[Metric]:
        """See prometheus_client.registry.Collector."""
        sequences, blocks = self._by_state("sequences"), self._by_state("kv_blocks")
        opening = self._open_streams.count - self._open_streams.num_begun
        num_blocks = blocks.get("used", 0.0) + blocks.get("available", 0.0)
        yield self._gauge(
            "num_requests_running", "Number of requests in model execution batches.", sequences.get("running", 0.0)
        )
        yield self._gauge(
            "num_requests_waiting",
            "Number of requests waiting to be processed.",
            sequences.get("waiting", 0.0) + max(0, opening),
        )
        usage = blocks.get("used", 0.0) / num_blocks if num_blocks else 0.0
        yield self._gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", usage)
        if self._engine_loop.is_ready:
            yield self._cache_config()
        if self._adapters is not None:
            yield self._lora_requests(self._adapters)
        if self._drafts is not None:
            yield from self._speculation(self._drafts())

    def _cache_config(self) -> Metric:
        facts = self._engine_loop.facts
        labels = (*_LABELS, "block_size", "num_gpu_blocks")
        family = GaugeMetricFamily("vllm:cache_config_info", "Information of the engine's KV blocks.", labels=labels)
        family.add_metric([*self._of, str(facts.block_size), str(facts.max_kv_tokens // facts.block_size)], 1.0)
        return family

    def _lora_requests(self, adapters: AdapterSlots) -> Metric:
        """Adapters by digest. They are said to run where a sequence that uses them has KV blocks, else to wait."""
        uses = [one.attributes for one in self._engine_loop.readings.get("adapter_uses", ())]
        found = {state: {of["slot"] for of in uses if of["state"] == state} for state in ("running", "waiting")}
        digests = adapters.digests()
        running = {digest for digest, slot in digests.items() if slot in found["running"]}
        waiting = {digest for digest, slot in digests.items() if slot in found["waiting"]} | adapters.awaited()
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Running stats on LoRA requests.",
            labels=("model_name", "max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        lists = [",".join(sorted(each)) for each in (running, waiting)]
        family.add_metric([self._of[0], str(adapters.num_slots), *lists], time.time())
        return family

    def _speculation(self, drafts: Drafts) -> abc.Iterator[Metric]:
        accepted = sum(drafts.num_accepted.values())
        yield self._counter("num_drafts", "Number of spec decoding drafts.", drafts.num_drafts)
        yield self._counter("num_draft_tokens", "Number of draft tokens.", drafts.num_draft_tokens)
        yield self._counter("num_accepted_tokens", "Number of accepted tokens.", accepted)
        by_place = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Accepted tokens per draft position.",
            labels=(*_LABELS, "position"),
        )
        for place, count in sorted(drafts.num_accepted.items()):
            by_place.add_metric([*self._of, str(place)], count)
        yield by_place

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", documentation, labels=_LABELS)
        family.add_metric(self._of, value)
        return family

    def _counter(self, name: str, documentation: str, value: float) -> Metric:
        family = CounterMetricFamily(f"vllm:spec_decode_{name}", documentation, labels=_LABELS)
        family.add_metric(self._of, value)
        return family

    def _by_state(self, name: str) -> dict[object, float]:
        return {one.attributes["state"]: one.value for one in self._engine_loop.readings.get(name, ())}
