"""The files in deploy/envoy as they ship, to their last byte."""

import asyncio
from pathlib import Path

import pytest
import yaml

from services.common.identities import Identity
from services.local.certificate_folder import CertificateFolder
from support.envoy import ENVOY, FOLDER, lay


@pytest.mark.parametrize(("name", "identity"), [("edge", Identity.CLIENT), ("mesh", Identity.GATEWAY)])
async def test_envoy_takes_what_ships_and_finds_nothing_outdated(
    name: str, identity: Identity, certificates: CertificateFolder, tmp_path: Path
) -> None:
    folder = lay(tmp_path / name, certificates, identity)
    process = await asyncio.create_subprocess_exec(
        *(ENVOY, "--mode", "validate", "-c", f"{name}.yaml", "--log-level", "warning"),
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert "Deprecated" not in said.decode()


def test_verifiers_and_drafts_are_treated_alike() -> None:
    clusters = yaml.safe_load((FOLDER / "mesh.yaml").read_text())["static_resources"]["clusters"]
    verifier, draft = (next(each for each in clusters if each["name"] == name) for name in ("verifier", "draft"))
    own = {"name", "load_assignment", "transport_socket"}
    assert {key: value for key, value in verifier.items() if key not in own} == {
        key: value for key, value in draft.items() if key not in own
    }
