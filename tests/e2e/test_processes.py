"""Real processes, real signals: streams outlive them with the same tokens."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from paceline import Client
from services.local.errors import LaunchError
from services.local.launcher import Launcher, running
from services.local.pair import Pair
from services.local.system import SystemSettings
from support.lines import Lines
from support.redis_server import free_ports
from support.system import first_tokens

NUM_TOKENS = 300
REQUEST = {"max_tokens": NUM_TOKENS, "seed": 9, "ignore_eos": True}


@pytest.fixture(scope="module")
def settings(target_folder: str, draft_folder: str) -> SystemSettings:
    return SystemSettings((Pair(model=target_folder, draft=draft_folder, dtype="float32", threads=1, draft_threads=1),))


@pytest.fixture
async def launcher(settings: SystemSettings) -> AsyncIterator[Launcher]:
    async with running(settings) as launcher:
        yield launcher


async def tokens(client: Client, **more: object) -> list[int]:
    produced: list[int] = []
    async for event in client.generate("def f(", **{**REQUEST, **more}):
        produced.extend(event.delta.token_ids)
    return produced


@pytest.mark.timeout(240)
async def test_streams_survive_their_processes(settings: SystemSettings) -> None:
    """A draft killed, then a verifier killed and started again: the tokens are those of an undisturbed request."""
    heard = Lines()
    async with running(replace(settings, restart=True), heard) as launcher:
        async with Client(launcher.address()) as client:
            expected = await tokens(client, speculation=False)
            assert len(expected) == NUM_TOKENS
            for victim in ("draft", "verifier"):
                produced: list[int] = []
                async for event in client.generate("def f(", **REQUEST):
                    if len(produced) < 40 <= len(produced) + len(event.delta.token_ids):
                        launcher.kill(victim)
                    produced.extend(event.delta.token_ids)
                assert produced == expected, victim
        ended = {"draft ended with exit code -9", "verifier ended with exit code -9"}
        async with asyncio.timeout(20):  # What was killed may have had sent all that was asked for.
            while not ended <= set(heard.lines):
                await asyncio.sleep(0.05)


async def test_the_gateway_imports_no_torch_and_stays_small(launcher: Launcher) -> None:
    async with Client(launcher.address()) as client:
        await asyncio.gather(*(tokens(client, max_tokens=20) for _ in range(20)))
    gateway = psutil.Process(launcher.children["gateway"].pid)
    assert gateway.memory_info().rss < 300e6
    assert not any("libtorch" in mapped.path for mapped in gateway.memory_maps())


async def test_a_draft_that_has_ended_for_good_does_not_end_the_system(settings: SystemSettings) -> None:
    heard = Lines()
    async with running(settings, heard) as launcher:
        launcher.kill("draft")
        while "draft is not started again; the system goes on without it" not in heard.lines:
            await asyncio.sleep(0.01)
        async with Client(launcher.address()) as client:
            assert len(await tokens(client, max_tokens=20)) == 20
        assert not launcher.failed.done()


async def test_sigterm_ends_every_process_cleanly_and_lets_streams_finish(launcher: Launcher) -> None:
    async with Client(launcher.address()) as client:
        stream = client.generate("def f(", **{**REQUEST, "max_tokens": 60})
        first = await first_tokens(stream)
        rest = asyncio.create_task(_count(stream))
        await launcher.stop()
        assert len(first) + await rest == 60
    assert {name: child.returncode for name, child in launcher.children.items()} == {
        "verifier": 0, "draft": 0, "gateway": 0
    }  # fmt: skip


async def test_a_verifier_told_to_stop_finishes_its_streams(settings: SystemSettings) -> None:
    heard = Lines()
    async with running(settings, heard) as launcher:
        async with Client(launcher.address()) as client:
            stream = client.generate("def f(", **{**REQUEST, "max_tokens": 60})
            first = await first_tokens(stream)
            for name in ("draft", "verifier"):
                launcher.children[name].signal(signal.SIGTERM)
            assert len(first) + await _count(stream) == 60
            for name in ("draft", "verifier"):
                assert await launcher.children[name].wait() == 0
    assert not [line for line in heard.lines if "lost" in line]


async def _count(stream: AsyncIterator[object]) -> int:
    return sum([len(event.delta.token_ids) async for event in stream])  # type: ignore[attr-defined]


async def test_a_launcher_that_is_killed_leaves_nothing_behind(target_folder: str) -> None:
    program = (
        "import asyncio\n"
        "from services.local.launcher import running\n"
        "from services.local.pair import Pair\n"
        "from services.local.system import SystemSettings\n"
        "async def main():\n"
        f"    settings = SystemSettings((Pair(model={target_folder!r}, dtype='float32', threads=1),))\n"
        "    async with running(settings) as launcher:\n"
        "        print(*(child.pid for child in launcher.children.values()), flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    children = [psutil.Process(int(pid)) for pid in (await parent.stdout.readline()).split()]
    assert len(children) == 2
    parent.kill()
    await parent.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 20)
    assert not alive


async def test_a_model_that_is_not_there_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "odd"}')
    for model, said in (
        ("/nonexistent/model", "there is no folder /nonexistent/model"),
        (str(tmp_path), "holds no model: there is no config.json"),
        (str(tmp_path / "odd"), r"the installed transformers does not know models of type odd"),
    ):
        with pytest.raises(LaunchError, match=said) as caught:
            async with running(SystemSettings((Pair(model=model),), restart=True)):
                pass
        assert "\n" not in str(caught.value)


@pytest.mark.timeout(240)
async def test_up_runs_until_interrupted_and_serves_the_commands(
    target_folder: str, draft_folder: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "paceline"]
    names = ("gateway", "draft", "verifier", "prefix-cache", "adapter-store")
    chosen = dict(zip(names, free_ports(len(names)), strict=True))
    ports = [*(f"--{name}-port={port}" for name, port in chosen.items()), f"--adapter-folder={tmp_path}"]
    up = await asyncio.create_subprocess_exec(
        *command, "up", f"--model={target_folder}", f"--draft-model={draft_folder}", *ports,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert up.stdout is not None
    seen: list[str] = []
    async for raw in up.stdout:
        seen.append(raw.decode())
        if "Ctrl-C stops everything" in seen[-1]:
            break
    assert up.returncode is None, "".join(seen)
    assert re.search(rf"verifier +127\.0\.0\.1:{chosen['verifier']}, room for [\d,]+ tokens, \d+ thread", "".join(seen))

    async def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *command, *arguments, f"--address=127.0.0.1:{chosen['gateway']}",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate(stdin.encode())
        return process.returncode or 0, out.decode(), err.decode()

    code, out, err = await run("generate", "abc", "--max-tokens=5", "--seed=1", "--stats")
    assert code == 0, err
    assert re.search(r"^[1-5] tokens in \d", err, re.MULTILINE), err
    code, out, err = await run("generate", "-", "--max-tokens=5", "--json", stdin="abc")
    assert code == 0, err
    assert '"started"' in out
    assert '"usage"' in out
    code, out, err = await run("models")
    assert code == 0, err
    assert "LlamaForCausalLM" in out
    code, out, err = await run("chat", "--max-tokens=5", stdin="hello\n/reset\n/exit\n")
    assert code == 0, err
    code, out, err = await run("generate", "abc", "--temperature=-1")
    assert code == 1
    assert "sampling.temperature" in err
    code, out, err = await run("models", "--json")
    assert json.loads(out)[0]["target"]["architecture"] == "LlamaForCausalLM", err
    second = await asyncio.create_subprocess_exec(
        *command, "up", f"--model={target_folder}", *ports, stderr=asyncio.subprocess.PIPE
    )
    said = (await second.communicate())[1].decode()
    assert "is taken" in said
    assert said.count("\n") == 1
    assert second.returncode == 1
    up.send_signal(signal.SIGINT)
    rest = (await up.stdout.read()).decode()
    assert await up.wait() == 0, rest
    assert rest.endswith("stopped\n")
    code, out, err = await run("models")
    assert code == 1
    assert "no gateway answers" in err
    assert "paceline up" in err
