"""The Helm chart, rendered by Helm itself."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "paceline"
KEY = "ab" * 32
MODEL = {"name": "code", "id": "code", "target": "org/target", "draft": "org/draft"}
PLAIN: dict[str, Any] = {"tokenKeys": [KEY]}
FULL: dict[str, Any] = {
    **PLAIN,
    "modelStorage": {"claim": "models", "hubToken": True},
    "certificates": {
        "issuer": {"name": "own", "kind": "Issuer"},
        "edgeIssuer": {"name": "public", "kind": "ClusterIssuer"},
    },
    "prefixCache": {"replicas": 2, "redis": True},
    "adapterStore": {"replicas": 2, "s3": {"url": "s3://bucket/adapters", "region": "eu-central-1"}},
    "mesh": {"enabled": True},
    "telemetry": {"collector": "http://collector.monitoring:4317"},
    "keda": {"enabled": True},
    "networkPolicy": {"clients": [{"kubernetes.io/metadata.name": "apps"}]},
    "image": {"repository": "example/paceline", "pullSecrets": [{"name": "pull"}]},
}
SEVERAL: dict[str, Any] = {
    **PLAIN,
    "models": [
        {**MODEL, "verifiers": {"min": 1, "max": 3}, "drafts": {"min": 1, "max": 2}},
        {"name": "chat", "id": "org/chat", "target": "org/chat", "verifiers": {"min": 2, "max": 2}},
    ],
    "keda": {"enabled": True},
    "prefixCache": {"enabled": False},
    "adapterStore": {"enabled": False},
    "edge": {"enabled": False},
    "networkPolicy": {"enabled": False},
}
ALL = {"plain": PLAIN, "full": FULL, "several": SEVERAL}


@dataclass
class Container:
    """A process of ours in a pod."""

    process: str
    owner: dict[str, Any]
    pod: dict[str, Any]
    spec: dict[str, Any]
    settings: dict[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        """What it is told beside its file; of secrets, something of the right form."""
        made = {"signing-key": KEY, "seal-key": KEY, "database": "postgresql://p:w@db/p"}
        made |= {"redis-url": "redis://:w@r", "hub-token": "hf_x"}
        found = {}
        for each in self.spec["env"]:
            found[each["name"]] = each.get("value") or made[each["valueFrom"]["secretKeyRef"]["key"]]
        return found


class Rendered:
    """All objects of a release."""

    def __init__(self, values: dict[str, Any]) -> None:
        with helm_python.Chart.load(CHART) as chart:
            chart.validate_schema(values)
            files = chart.render(values, name="paceline", namespace="llm")
        self.notes = files.pop("paceline/templates/NOTES.txt")
        self.objects = [each for text in files.values() for each in yaml.safe_load_all(text) if each]

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        return [each for each in self.objects if each["kind"] in kinds]

    def named(self, kind: str, name: str) -> dict[str, Any]:
        (found,) = [each for each in self.of(kind) if each["metadata"]["name"] == name]
        return found

    def pods(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Whatever makes pods, and their template."""
        for owner in self.of("Deployment", "StatefulSet"):
            yield owner, owner["spec"]["template"]

    def containers(self) -> Iterator[Container]:
        """All processes of ours."""
        for owner, pod in self.pods():
            for spec in pod["spec"]["containers"]:
                if spec["name"] != "envoy":
                    (volume,) = [each for each in pod["spec"]["volumes"] if each["name"] == "settings"]
                    config = self.named("ConfigMap", volume["configMap"]["name"])
                    settings = json.loads(config["data"]["settings.json"])
                    yield Container(spec["name"], owner, pod, spec, settings)


def selects(selector: dict[str, str], objects: Iterable[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Those whose labels a selector matches."""
    return [each for each in objects if selector.items() <= each["metadata"]["labels"].items()]
