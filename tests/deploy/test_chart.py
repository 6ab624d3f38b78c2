"""The Helm chart: rendered by Helm, checked against Kubernetes' schemas, and read by the processes themselves."""

import json
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest

from services.common.identities import CALLERS, Identity, callers_of
from support.chart import ALL, CHART, FULL, PLAIN, SEVERAL, Rendered, selects
from support.deployed import METRICS_PORTS, PORTS, load

OLDEST, NEWEST = "1.30", kubernetes_validate.latest_version()
_CUSTOM = {"ScaledObject", "Certificate"}
OF_KUBERNETES = {
    "PACELINE_GATEWAY_PORT": "tcp://10.0.0.1:7100",
    "PACELINE_GATEWAY_PORT_7100_TCP_ADDR": "10.0.0.1",
    "PACELINE_GATEWAY_SERVICE_HOST": "10.0.0.1",
    "PACELINE_VERIFIER_CODE_SERVICE_PORT_GRPC": "7102",
    "PACELINE_DRAFT_PORT": "tcp://10.0.0.2:7101",
    "PACELINE_PREFIX_CACHE_PORT": "tcp://10.0.0.3:7103",
    "PACELINE_ADAPTER_STORE_SERVICE_PORT": "7104",
}
"""What Kubernetes would say of services, if it were let."""
SCALED_OBJECT = {
    "type": "object",
    "required": ["scaleTargetRef", "triggers"],
    "additionalProperties": False,
    "properties": {
        "scaleTargetRef": {
            "required": ["name"],
            "additionalProperties": False,
            "properties": {"name": {"type": "string"}, "kind": {"enum": ["StatefulSet"]}},
        },
        "minReplicaCount": {"type": "integer", "minimum": 1},
        "maxReplicaCount": {"type": "integer"},
        "advanced": {"type": "object"},
        "triggers": {
            "minItems": 1,
            "items": {
                "required": ["type", "metadata", "metricType"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "prometheus"},
                    "metricType": {"enum": ["AverageValue", "Value"]},
                    "metadata": {
                        "required": ["serverAddress", "query", "threshold"],
                        "additionalProperties": {"type": "string"},
                    },
                },
            },
        },
    },
}
"""The share of KEDA's own that the chart uses: https://keda.sh/docs/latest/reference/scaledobject-spec."""


@pytest.fixture(scope="module", params=ALL)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return Rendered(ALL[request.param])


@pytest.mark.parametrize("values", ALL.values(), ids=ALL)
def test_helm_has_nothing_against_it(values: dict[str, Any]) -> None:
    report = helm_python.lint(CHART, values, strict=True)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_every_object(rendered: Rendered, version: str) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in rendered.objects]
    assert len(set(names)) == len(names) > 10
    for each in rendered.objects:
        if each["kind"] == "ScaledObject":
            jsonschema.validate(each["spec"], SCALED_OBJECT)
        elif each["kind"] not in _CUSTOM:
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokenKeys": []},
        {"tokenKeys": ["abc"]},
        {**PLAIN, "gatewai": {}},
        {**PLAIN, "verifier": {"waitin": 1}},
        {**PLAIN, "models": []},
    ],
)
def test_what_is_misspelt_or_missing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError):
        Rendered(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mesh": {"enabled": True}, **SEVERAL},
        {**PLAIN, "prefixCache": {"replicas": 2}},
        {**PLAIN, "adapterStore": {"replicas": 2}},
    ],
)
def test_what_does_not_go_together_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError):
        Rendered(wrong)


def test_each_process_reads_its_settings_behind_kubernetes_variables(
    rendered: Rendered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for container in rendered.containers():
        file = tmp_path / "settings.json"
        file.write_text(json.dumps(container.settings))
        arguments = [str(file) if each == "/etc/paceline/settings.json" else each for each in container.spec["args"]]
        settings = load(container.process, {**container.environment, **OF_KUBERNETES}, arguments, monkeypatch)
        ports = {port["name"]: port["containerPort"] for port in container.spec["ports"]}
        assert ports == {"grpc": PORTS[container.process], "metrics": METRICS_PORTS[container.process]}
        assert (settings.server.port, settings.telemetry.prometheus_port) == (ports["grpc"], ports["metrics"])
        assert settings.server.host == settings.telemetry.prometheus_host == "0.0.0.0"
        assert settings.server.tls is not None
        assert settings.server.tls.client_ca is not None
        assert container.environment["PACELINE_SERVER_NAME"] == container.process


def test_what_processes_call_is_there(rendered: Rendered) -> None:
    pods = {each["metadata"]["name"]: each for each in rendered.of("StatefulSet")}
    services = {each["metadata"]["name"]: each for each in rendered.of("Service")}
    called = []
    for container in rendered.containers():
        settings = container.settings
        for model in settings.get("models", ()):
            called += [*model["verifiers"], *model["drafts"]]
        called += [*settings.get("prefix_caches", ()), *settings.get("adapter_stores", ())]
        called += [settings[name] for name in ("prefix_cache", "adapter_store") if name in settings]
    assert called
    for address in called:
        host, _, port = address.partition(":")
        if host == "127.0.0.1":
            assert int(port) in (7111, 7112)
            continue
        pod, _, service = host.rpartition(".")
        assert services[service]["spec"]["ports"][0]["port"] == int(port)
        assert selects(services[service]["spec"]["selector"], [each["spec"]["template"] for each in pods.values()])
        if pod:
            assert pod.rpartition("-")[0] in pods
            assert pods[service]["spec"]["serviceName"] == service


def test_gateways_know_all_pods_that_a_pool_may_come_to_have() -> None:
    rendered = Rendered(SEVERAL)
    (gateway,) = [each for each in rendered.containers() if each.process == "gateway"]
    code, chat = gateway.settings["models"]
    assert code["verifiers"] == [f"paceline-verifier-code-{n}.paceline-verifier-code:7102" for n in range(3)]
    assert code["drafts"] == [f"paceline-draft-code-{n}.paceline-draft-code:7101" for n in range(2)]
    assert (len(chat["verifiers"]), chat["drafts"]) == (2, [])


def test_pods_are_nobody_and_their_files_are_read_only(rendered: Rendered) -> None:
    for _, pod in rendered.pods():
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert not pod["spec"]["automountServiceAccountToken"]
        assert not pod["spec"]["enableServiceLinks"]
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        accounts = {each["metadata"]["name"] for each in rendered.of("ServiceAccount")}
        assert pod["spec"]["serviceAccountName"] in accounts


def test_weights_may_take_their_time_and_streams_theirs(rendered: Rendered) -> None:
    for container in rendered.containers():
        startup = container.spec["startupProbe"]
        seconds = startup["periodSeconds"] * startup["failureThreshold"]
        assert seconds >= {"verifier": 3600, "draft": 1800}.get(container.process, 600)
        sleep = container.spec["lifecycle"]["preStop"]["sleep"]["seconds"]
        grace = container.settings["server"]["grace_seconds"]
        assert container.pod["spec"]["terminationGracePeriodSeconds"] > sleep + grace


def test_drafts_are_on_small_gpus_and_verifiers_on_large_ones(rendered: Rendered) -> None:
    for container in rendered.containers():
        pool = container.pod["spec"].get("nodeSelector", {}).get("paceline.dev/pool")
        assert pool == {"verifier": "large-gpu", "draft": "small-gpu"}.get(container.process)
        has_gpu = "nvidia.com/gpu" in container.spec["resources"]["limits"]
        assert has_gpu == (container.process in ("verifier", "draft"))


def test_every_pool_has_a_budget_and_every_selector_its_pods(rendered: Rendered) -> None:
    pods = [pod for _, pod in rendered.pods()]
    budgets = rendered.of("PodDisruptionBudget")
    assert len(budgets) == len(pods)
    for each in [*budgets, *rendered.of("NetworkPolicy")]:
        selector = each["spec"].get("selector") or each["spec"]["podSelector"]
        assert selects(selector["matchLabels"], pods), each["metadata"]["name"]
    for each in rendered.of("Service"):
        assert selects(each["spec"]["selector"], pods)
    for owner, pod in rendered.pods():
        assert owner["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_who_may_call_whom_is_what_certificates_say() -> None:
    policies = Rendered(FULL).of("NetworkPolicy")
    for process in PORTS:
        if process == "gateway":
            continue
        package = f"paceline.internal.v1.{''.join(word.title() for word in process.split('-'))}Service"
        named = [name for name in CALLERS if name.startswith(package)]
        allowed = {caller for name in named for caller in callers_of(f"/{name}")} - {Identity.CLIENT}
        (policy,) = [each for each in policies if each["metadata"]["name"] == f"paceline-{process}"]
        ingress = policy["spec"]["ingress"][0]
        assert ingress["ports"] == [{"protocol": "TCP", "port": PORTS[process]}]
        callers = {each["podSelector"]["matchLabels"]["paceline.dev/process"] for each in ingress["from"]}
        assert callers == {str(each) for each in allowed}


def test_no_secret_is_in_the_release(rendered: Rendered) -> None:
    assert rendered.of("Secret") == []
    secrets = {
        each["valueFrom"]["secretKeyRef"]["key"]
        for container in rendered.containers()
        for each in container.spec["env"]
        if "valueFrom" in each
    }
    assert {"signing-key", "database"} <= secrets


def test_who_loads_models_of_the_hub_has_its_token_and_nobody_else() -> None:
    tokens = {container.process for container in Rendered(FULL).containers() if "HF_TOKEN" in container.environment}
    assert tokens == {"gateway", "verifier", "draft"}
    assert all("HF_TOKEN" not in container.environment for container in Rendered(PLAIN).containers())


def test_pools_grow_by_queue_and_memory_within_their_bounds() -> None:
    rendered = Rendered(FULL)
    scaled = {each["metadata"]["name"]: each["spec"] for each in rendered.of("ScaledObject")}
    assert set(scaled) == {"paceline-gateway", "paceline-verifier-code", "paceline-draft-code"}
    queries = [trigger["metadata"]["query"] for trigger in scaled["paceline-verifier-code"]["triggers"]]
    pods = '{model_name="code", pod=~"paceline-verifier-code-[0-9]+", namespace="llm"}'
    assert queries == [f"sum(vllm:num_requests_waiting{pods})", f"sum(vllm:kv_cache_usage_perc{pods})"]
    for name, spec in scaled.items():
        kind = spec["scaleTargetRef"].get("kind", "Deployment")
        assert "replicas" not in rendered.named(kind, name)["spec"], "one of the two says how many there are"
        assert spec["minReplicaCount"] <= spec["maxReplicaCount"]
