"""The compose file, which nothing here can run: its form, and what its processes would read of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from support.deployed import PORTS, VARIABLE, filled, load, secrets

MADE = "./certificates"
Services = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def written(repository: Path) -> dict[str, Any]:
    """The file, with the variables in it as compose fills them."""
    loaded: dict[str, Any] = yaml.safe_load(filled(repository / "deploy" / "compose.yaml"))
    return loaded


@pytest.fixture(scope="module")
def services(written: dict[str, Any]) -> Services:
    found: Services = written["services"]
    return found


def test_it_is_a_compose_file(written: dict[str, Any]) -> None:
    assert len(PyCompose.from_json(json.dumps(written)).services or {}) == len(written["services"])


def test_every_image_has_a_version(services: Services) -> None:
    for name, service in services.items():
        assert name in PORTS or re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", service["image"]), service["image"]


def test_no_secret_stands_in_the_file(repository: Path) -> None:
    text = (repository / "deploy" / "compose.yaml").read_text()
    assert {name for name, kind, _ in VARIABLE.findall(text) if kind == "?"} == set(secrets())


def test_each_process_reads_what_is_said_of_it(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    for process, port in PORTS.items():
        environment = services[process]["environment"]
        settings = load(process, environment, (), monkeypatch)
        assert settings.server.port == port
        assert settings.server.tls is not None
        targets = {volume.split(":")[1] for volume in services[process]["volumes"]}
        assert {str(settings.server.tls.certificate), str(settings.server.tls.key)} <= targets
        assert f"./certificates/{process}-key.pem:/certificates/own-key.pem:ro" in services[process]["volumes"]
        assert settings.telemetry.prometheus_host == "0.0.0.0"
        assert environment["PACELINE_SERVER_NAME"] == process
        assert float(services[process]["stop_grace_period"].removesuffix("s")) > settings.server.grace_seconds


def test_what_processes_call_is_there(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = load("gateway", services["gateway"]["environment"], (), monkeypatch)
    verifier = load("verifier", services["verifier"]["environment"], (), monkeypatch)
    model = gateway.models[0]
    called = [*model.verifiers, *model.drafts, *gateway.prefix_caches, *gateway.adapter_stores]
    for address in (*called, verifier.prefix_cache, verifier.adapter_store):
        host, _, port = address.partition(":")
        assert PORTS[host] == int(port)
    assert verifier.public_model_id == model.id
    assert "@postgres/" in gateway.database_url
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"] in gateway.database_url


def test_what_is_mounted_from_the_tree_is_there(services: Services, repository: Path) -> None:
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith((".", "/")) and not source.startswith(MADE):
                assert (repository / "deploy" / source).exists(), source


def test_prometheus_reads_every_process_where_it_says(
    services: Services, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = yaml.safe_load((repository / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = {(name, each["port"]) for job in read for each in job["dns_sd_configs"] for name in each["names"]}
    for process in PORTS:
        settings = load(process, services[process]["environment"], (), monkeypatch)
        assert (process, settings.telemetry.prometheus_port) in targets


def test_the_collector_listens_where_others_send_and_sends_where_others_listen(
    services: Services, repository: Path
) -> None:
    collector = yaml.safe_load((repository / "deploy" / "otel" / "collector.yaml").read_text())
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in collector["service"]["pipelines"].values() for name in pipeline[kind]}
        assert used == set(collector[kind])
    port = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    for process in PORTS:
        telemetry = next(value for name, value in services[process]["environment"].items() if "TELEMETRY" in name)
        assert json.loads(telemetry)["otlp_endpoint"] == f"http://otel-collector:{port}"
    (envoy,) = collector["receivers"]["prometheus/envoy"]["config"]["scrape_configs"]
    assert envoy["dns_sd_configs"] == [{"names": ["envoy"], "type": "A", "port": 9902}]
    assert "--web.enable-otlp-receiver" in services["prometheus"]["command"]


def test_only_the_edge_is_reached_from_elsewhere(services: Services) -> None:
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports.pop("envoy") == ["8443:8443"]
    assert all(port.startswith("127.0.0.1:") for each in ports.values() for port in each)
