"""What the chart makes of the files in deploy/envoy, given to a real Envoy."""

import asyncio
from pathlib import Path

import pytest
import yaml

from services.common.identities import Identity
from services.local.certificate_folder import CertificateFolder
from support.chart import FULL, Rendered
from support.envoy import ENVOY, lay


@pytest.mark.parametrize(("name", "identity"), [("edge", Identity.CLIENT), ("mesh", Identity.GATEWAY)])
async def test_envoy_takes_what_the_chart_makes(
    name: str, identity: Identity, certificates: CertificateFolder, tmp_path: Path
) -> None:
    rendered = Rendered(FULL)
    data = rendered.named("ConfigMap", f"paceline-{name}")["data"]
    folder = lay(tmp_path / name, certificates, identity)
    for file in folder.glob("*.yaml"):
        file.unlink()
    for file, text in data.items():
        (folder / file).write_text(text)
    process = await asyncio.create_subprocess_exec(
        *(ENVOY, "--mode", "validate", "-c", f"{name}.yaml", "--log-level", "warning"),
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    services = {each["metadata"]["name"] for each in rendered.of("Service")}
    clusters = yaml.safe_load(data[f"{name}.yaml"])["static_resources"]["clusters"]
    for cluster in clusters:
        (group,) = cluster["load_assignment"]["endpoints"]
        for endpoint in group["lb_endpoints"]:
            host = endpoint["endpoint"]["address"]["socket_address"]["address"]
            assert host in services | {"127.0.0.1", "collector.monitoring"}


def test_what_envoys_mount_is_there() -> None:
    rendered = Rendered(FULL)
    for _, pod in rendered.pods():
        volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
        claims = {"data"}
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())]:
            for mount in container["volumeMounts"]:
                assert mount["name"] in volumes or mount["name"] in claims
                if "subPath" in mount:
                    config = rendered.named("ConfigMap", volumes[mount["name"]]["configMap"]["name"])
                    assert mount["subPath"] in config["data"]


def test_every_certificate_that_is_mounted_is_issued() -> None:
    rendered = Rendered(FULL)
    issued = {each["spec"]["secretName"] for each in rendered.of("Certificate")}
    mounted = {
        volume["secret"]["secretName"]
        for _, pod in rendered.pods()
        for volume in pod["spec"]["volumes"]
        if "secret" in volume
    }
    assert mounted == issued
    uris = {uri for each in rendered.of("Certificate") for uri in each["spec"].get("uris", ())}
    assert uris == {f"spiffe://paceline/{identity}" for identity in Identity}
