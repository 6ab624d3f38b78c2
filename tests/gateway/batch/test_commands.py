"""`paceline batch`, from a file to its results."""

import asyncio
import json
from pathlib import Path

from typer.testing import CliRunner

from paceline.cli.app import app
from support.batch import expected, jsonl, line, texts
from support.fakes import FakeVerifier, serve_fakes
from support.system import StartGateway


async def test_the_command_line_submits_watches_and_reads(start_gateway: StartGateway, tmp_path: Path) -> None:
    file = tmp_path / "batch.jsonl"
    file.write_bytes(jsonl(line("a"), line("b")))
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address]) as system:

        async def do(*arguments: str, given: bytes | None = None, code: int = 0) -> str:
            environment = {"PACELINE_ADDRESS": system.gateway}
            done = await asyncio.to_thread(CliRunner().invoke, app, ("batch", *arguments), given, env=environment)
            assert done.exit_code == code, done.output
            return done.stdout if not code else done.output

        assert "2 items" in await do("estimate", str(file))
        batch_id = (await do("submit", str(file), "--note", "for=test", "--key", "k")).strip()
        assert (
            await do("submit", "-", "--note", "for=test", "--key", "k", given=file.read_bytes())
        ).strip() == batch_id
        assert "completed: 2 of 2 completed, 0 failed" in await do("watch", batch_id)
        lines = [json.loads(each) for each in (await do("results", batch_id)).splitlines()]
        assert texts(lines) == {"a": expected("a"), "b": expected("b")}
        assert json.loads(await do("status", batch_id, "--json"))["counts"]["completed"] == "2"
        assert "for" in await do("status", batch_id)
        assert batch_id in await do("list", "--state", "completed")
        await do("delete", batch_id)
        assert "batch" in await do("status", batch_id, code=1)
        assert "no file" in await do("submit", str(tmp_path / "none"), code=1)
