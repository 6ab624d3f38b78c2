"""What a platform sees of a running system: real processes, a real Prometheus, a collector, and every log line."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from paceline import PacelineError
from support.observed import ADAPTERS, KINDS, Observed, logged, observed
from support.prometheus_server import PrometheusServer, compared, reading, selectors
from support.system import first_tokens

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]
SECRET = "zebra quagga okapi"
LONG = f"# {SECRET}\n" + "def add(first, second):\n    return first + second\n\n\n" * 40
CODE = "def f(x):\n    return"
VARIABLES = {"$__rate_interval": "1m", "$__range": "5m", "$model": ".*"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Observed]:
    async with observed(tmp_path_factory.mktemp("observed")) as running:
        yield running


async def wait_for(system: Observed, kind: str, name: str, at_least: float, **labels: str) -> None:
    """Returns once a sample of a process is large enough."""
    async with asyncio.timeout(60):
        while not any(
            value >= at_least and labels.items() <= of.items() for of, value in await system.values(kind, name)
        ):
            await asyncio.sleep(0.05)


async def test_a_request_is_one_trace_through_all_services_with_few_spans(system: Observed) -> None:
    request_id, _ = await system.say(
        LONG, adapter="two-spaces", max_tokens=300, temperature=0.3, seed=11, ignore_eos=True
    )
    async with asyncio.timeout(60):
        trace = await system.collector.trace_with(
            ("paceline-gateway", "/paceline.v1.InferenceService/Generate"),
            ("paceline-gateway", "/paceline.internal.v1.VerifierService/Verify"),
            ("paceline-verifier", "/paceline.internal.v1.VerifierService/Verify"),
            ("paceline-draft", "/paceline.internal.v1.DraftService/Propose"),
            ("paceline-verifier", "/paceline.internal.v1.AdapterStoreService/FetchAdapter"),
            ("paceline-adapter-store", "/paceline.internal.v1.AdapterStoreService/FetchAdapter"),
            ("paceline-verifier", "/paceline.internal.v1.PrefixCacheService/MatchBlocks"),
            ("paceline-prefix-cache", "/paceline.internal.v1.PrefixCacheService/MatchBlocks"),
            **{"paceline.request_id": request_id},
        )
    assert len(trace) < 24
    ids = {span.span_id for span in trace}
    assert sum(span.parent_id not in ids for span in trace) == 1  # One root: all others hang below it.
    (request,) = [span for span in trace if span.name == "text_completion target"]
    said = request.attributes
    assert said["gen_ai.operation.name"] == "text_completion"
    assert said["gen_ai.provider.name"] == "paceline"
    assert said["gen_ai.request.model"] == said["gen_ai.response.model"] == "target"
    assert (said["gen_ai.request.seed"], said["gen_ai.request.max_tokens"]) == (11, 300)
    assert said["gen_ai.response.id"] == request_id
    assert said["gen_ai.usage.output_tokens"] == 300
    assert said["gen_ai.usage.input_tokens"] > 500
    assert said["gen_ai.response.finish_reasons"] == ["length"]
    assert 0 < said["gen_ai.response.time_to_first_chunk"] < 60
    (verify,) = [span for span in trace if (span.service, span.name[-7:]) == ("paceline-verifier", "/Verify")]
    rounds = [values for name, values in verify.events if name == "rounds"]
    assert 1 < len(rounds) <= 48
    assert sum(values["paceline.committed_tokens"] for values in rounds) == 300
    assert sum(values["paceline.rounds"] for values in rounds) == said["paceline.rounds"]
    assert verify.attributes["paceline.accepted_tokens"] == said["paceline.accepted_tokens"]
    proposing = [span for span in trace if span.service == "paceline-draft"]  # A second one where the first was lost.
    assert any(name == "proposals" for span in proposing for name, _ in span.events)


async def test_both_kinds_of_exporters_have_the_metrics(system: Observed) -> None:
    await system.say(CODE, max_tokens=30)
    expected = {
        ("paceline-gateway", "gen_ai.server.time_to_first_token"),
        ("paceline-gateway", "gen_ai.server.time_per_output_token"),
        ("paceline-gateway", "gen_ai.server.request.duration"),
        ("paceline-gateway", "paceline.inter_token_latency"),
        ("paceline-gateway", "paceline.request.failovers"),
        ("paceline-gateway", "paceline.audit.mismatches"),
        ("paceline-verifier", "paceline.rounds"),
        ("paceline-verifier", "paceline.draft_wait"),
        ("paceline-verifier", "paceline.wanted_tokens"),
        ("paceline-verifier", "paceline.kv_blocks"),
        ("paceline-verifier", "paceline.speculation_on"),
        ("paceline-verifier", "paceline.adapter_slots"),
        ("paceline-draft", "paceline.proposals"),
        ("paceline-prefix-cache", "paceline.cache_bytes"),
        ("paceline-adapter-store", "paceline.adapter_uploads"),
    }
    async with asyncio.timeout(60):
        while not expected <= system.collector.metrics:
            system.collector.received.clear()
            await system.collector.received.wait()
    for service, name in expected:
        shown = {each.split("{")[0] for each, _ in await system.samples(service.removeprefix("paceline-"))}
        stem = re.sub(r"\W", "_", name)
        assert any(each.startswith(stem) for each in shown), name


async def test_the_names_that_inference_gateways_read_have_vllms_types_and_labels(system: Observed) -> None:
    for kind, model in (("verifier", "target"), ("draft", "draft")):
        types = await system.types(kind)
        for name in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"):
            assert types[f"vllm:{name}"] == "gauge"
            ((labels, _),) = await system.values(kind, f"vllm:{name}")
            assert labels == {"model_name": model, "engine": "0"}
        assert types["vllm:lora_requests_info"] == "gauge"
        ((labels, value),) = await system.values(kind, "vllm:lora_requests_info")
        assert labels.keys() == {"model_name", "max_lora", "running_lora_adapters", "waiting_lora_adapters"}
        assert value > 1e9  # It is the time of day.
        ((labels, value),) = await system.values(kind, "vllm:cache_config_info")
        assert (labels["block_size"], value) == ("16", 1)
        assert int(labels["num_gpu_blocks"]) > 100
    for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens"):
        assert (await system.types("verifier"))[f"vllm:spec_decode_{name}"] == "counter"
        ((labels, _),) = await system.values("verifier", f"vllm:spec_decode_{name}_total")
        assert labels == {"model_name": "target", "engine": "0"}
    assert not [name for name, _ in await system.samples("draft") if name.startswith("vllm:spec_decode")]


async def test_speculation_is_counted_as_the_usage_of_requests_has_it(system: Observed) -> None:
    async def counts() -> list[float]:
        names = ("num_draft_tokens", "num_accepted_tokens", "num_drafts")
        found = [await system.values("verifier", f"vllm:spec_decode_{name}_total") for name in names]
        by_place = await system.values("verifier", "vllm:spec_decode_num_accepted_tokens_per_pos_total")
        return [*(value for ((_, value),) in found), sum(value for _, value in by_place)]

    before = await counts()
    usage: Any = None
    async for event in system.client.generate(CODE * 4, max_tokens=200, temperature=0, ignore_eos=True):
        usage = event.usage if event.HasField("usage") else usage
    after = await counts()
    drafted, accepted, drafts, by_place = (late - early for early, late in zip(before, after, strict=True))
    assert drafted == usage.num_drafted_tokens > 0
    assert accepted == by_place == usage.num_accepted_tokens
    assert 0 < drafts <= usage.num_rounds


async def test_sequences_and_adapters_are_shown_while_they_run_and_while_they_wait(system: Observed) -> None:
    """There is room for two sequences and for one adapter."""
    streams = [
        system.client.generate(CODE, adapter=adapter, max_tokens=1500, ignore_eos=True, temperature=1)
        for adapter in ("two-spaces", "two-spaces", "two-spaces", "docstrings")
    ]
    readers = [asyncio.create_task(first_tokens(stream)) for stream in streams]
    await wait_for(system, "verifier", "vllm:num_requests_running", 2)
    await wait_for(system, "verifier", "vllm:num_requests_waiting", 2)
    ((_, usage),) = await system.values("verifier", "vllm:kv_cache_usage_perc")
    assert 0 < usage < 1
    async with asyncio.timeout(30):
        while True:
            ((labels, _),) = await system.values("verifier", "vllm:lora_requests_info")
            running, waiting = (labels[f"{state}_lora_adapters"].split(",") for state in ("running", "waiting"))
            if all(running) and len(waiting) == 2:
                break
            await asyncio.sleep(0.05)
    digests = {adapter.name: adapter.digest for adapter in await system.client.list_adapters()}
    assert labels["max_lora"] == "1"
    assert running == [digests["two-spaces"]]
    assert set(waiting) == {digests[name] for name in ADAPTERS}  # A third sequence of the first one waits for blocks.
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    for stream in streams:
        await stream.aclose()
    async with asyncio.timeout(30):
        while any(value for _, value in await system.values("verifier", "paceline_sequences")):
            await asyncio.sleep(0.05)


async def test_every_query_of_dashboard_and_rules_reads_what_is_there(
    system: Observed, repository: Path, tmp_path: Path
) -> None:
    rules = repository / "deploy" / "prometheus" / "paceline.rules.yml"
    jobs = {job["job_name"] for job in yaml.safe_load((rules.parent / "prometheus.yml").read_text())["scrape_configs"]}
    assert jobs == {f"paceline-{kind}" for kind in KINDS}
    ports = {f"paceline-{kind}": system.ports[kind] for kind in KINDS}
    async with reading(ports, rules, tmp_path) as prometheus:
        load = asyncio.create_task(_keep_busy(system))
        try:
            async with asyncio.timeout(120):
                # Rates take two readings, and of what was there at both.
                while not await prometheus.query("rate(paceline_adapter_evictions_total[1m]) > 0"):
                    await asyncio.sleep(0.2)
                while not await prometheus.query("paceline:parity_mismatches:per_10k_tokens_increase1d"):
                    await asyncio.sleep(0.2)
            for expression, legend in _queries(repository):
                for selector in selectors(expression):
                    await _found(prometheus, selector)
                found = await _found(prometheus, compared(expression))
                for label in re.findall(r"\{\{ *(?:\$labels\.)?(\w+) *\}\}", legend):
                    assert all(sample["metric"].get(label) for sample in found), f"{expression}: no label {label}"
            quiet = {"PacelineProcessDown", "PacelineRequestsFail", "PacelineParityMismatch", "PacelineFailovers"}
            fired = {sample["metric"]["alertname"] for sample in await prometheus.query("ALERTS")}
            assert not quiet & fired
        finally:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)


async def _found(prometheus: PrometheusServer, query: str) -> list[dict[str, Any]]:
    """What a query finds, which may take some readings."""
    for _ in range(100):
        if found := await prometheus.query(query):
            return found
        await asyncio.sleep(0.2)
    raise AssertionError(f"{query} finds nothing")


def _queries(repository: Path) -> list[tuple[str, str]]:
    """Each query with the text that names labels of what it finds."""
    deploy = repository / "deploy"
    dashboard = json.loads((deploy / "grafana" / "paceline.json").read_text())
    found = [
        (target["expr"], target["legendFormat"]) for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    for group in yaml.safe_load((deploy / "prometheus" / "paceline.rules.yml").read_text())["groups"]:
        found.extend((rule["expr"], str(rule.get("annotations", ""))) for rule in group["rules"])
    assert len(found) > 60
    for variable, value in VARIABLES.items():
        found = [(expression.replace(variable, value), legend) for expression, legend in found]
    return found


async def _keep_busy(system: Observed) -> None:
    """Requests of all kinds that dashboards show, until it is cancelled."""
    number = 0
    while True:
        number += 1
        await asyncio.gather(
            system.say(f"# {number}\n{LONG}", max_tokens=20, temperature=0),
            system.say(CODE * 5, adapter=ADAPTERS[number % 2], max_tokens=40, temperature=0.5),
            system.say(CODE * 5, max_tokens=60, temperature=0),
        )


async def test_lines_are_json_with_the_trace_and_never_hold_a_prompt_or_a_text(system: Observed) -> None:
    request_id, text = await system.say(f"{SECRET}\n{CODE}", max_tokens=40, temperature=0.8, seed=3, ignore_eos=True)
    chat = [{"role": "system", "content": SECRET}, {"role": "user", "content": SECRET}]
    async for _ in system.client.chat(chat, max_tokens=5, stop=[SECRET]):
        pass
    await first_tokens(stream := system.client.generate(LONG, max_tokens=500))
    await stream.aclose()
    refused: list[dict[str, Any]] = [
        {"temperature": -1.0}, {"stop": [SECRET * 100]}, {"adapter": "none"}, {"bad_words": [SECRET, ""]},
        {"n": 99}, {"max_tokens": 0}, {"model": "another"},
    ]  # fmt: skip
    for options in refused:
        with pytest.raises(PacelineError):
            await system.say(SECRET * 3, **options)
    with pytest.raises(PacelineError):
        await system.say(SECRET * 100_000)
    async with asyncio.timeout(30):
        while not (of_request := [line for line in system.lines.lines if f"request {request_id} " in line]):
            await asyncio.sleep(0.05)
    told = logged(of_request[0])
    assert told["service"] == "paceline-gateway"
    assert (told["level"], told["logger"]) == ("INFO", "gateway.generation.generation")
    async with asyncio.timeout(30):
        trace = await system.collector.trace_with(**{"paceline.request_id": request_id})
    assert told["trace_id"] == trace[0].trace_id.hex()
    assert told["span_id"] in {span.span_id.hex() for span in trace}
    assert len(system.lines.lines) > 30
    for line in system.lines.lines:
        assert logged(line)["message"] is not None
        for word in (*SECRET.split(), text.strip()[:30]):
            assert word not in line
    for span in system.collector.spans:
        assert not any(word in repr(span) for word in SECRET.split())
