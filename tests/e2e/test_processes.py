"""Real processes, real signals: streams outlive them with the same tokens."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

import psutil
import pytest

from paceline.client import Client
from services.local.launcher import Stack, running_stack
from services.local.system import LaunchError, StackSettings, divide_threads

NUM_TOKENS = 300
REQUEST = {"max_tokens": NUM_TOKENS, "seed": 9, "ignore_eos": True}


@pytest.fixture(scope="module")
def settings(target_folder: str, draft_folder: str) -> StackSettings:
    return StackSettings(
        model=target_folder, draft_model=draft_folder, dtype="float32", verifier_threads=1, draft_threads=1
    )


@pytest.fixture
async def stack(settings: StackSettings) -> AsyncIterator[Stack]:
    async with running_stack(settings) as running:
        yield running


async def tokens(client: Client, **more: object) -> list[int]:
    produced: list[int] = []
    async for event in client.generate("def f(", **{**REQUEST, **more}):
        produced.extend(event.delta.token_ids)
    return produced


@pytest.mark.timeout(240)
async def test_streams_survive_their_processes(settings: StackSettings) -> None:
    """A draft killed, then a verifier killed and started again: the tokens are those of an undisturbed request."""
    lines: list[str] = []
    restarting = replace(settings, restart=True)
    async with running_stack(restarting, lambda name, line: lines.append(f"{name} {line}")) as stack:
        async with Client(stack.address()) as client:
            expected = await tokens(client, speculation=False)
            assert len(expected) == NUM_TOKENS
            for victim in ("draft", "verifier"):
                produced: list[int] = []
                async for event in client.generate("def f(", **REQUEST):
                    if len(produced) < 40 <= len(produced) + len(event.delta.token_ids):
                        stack.kill(victim)
                    produced.extend(event.delta.token_ids)
                assert produced == expected, victim
    assert any("draft ended with exit code -9" in line for line in lines)
    assert any("verifier ended with exit code -9" in line for line in lines)


async def test_the_gateway_imports_no_torch_and_stays_small(stack: Stack) -> None:
    async with Client(stack.address()) as client:
        await asyncio.gather(*(tokens(client, max_tokens=20) for _ in range(20)))
    gateway = psutil.Process(stack.processes["gateway"].pid)
    assert gateway.memory_info().rss < 300e6
    assert not any("libtorch" in mapped.path for mapped in gateway.memory_maps())


async def test_sigterm_ends_every_process_cleanly_and_lets_streams_finish(stack: Stack) -> None:
    async with Client(stack.address()) as client:
        stream = client.generate("def f(", **{**REQUEST, "max_tokens": 60})
        first = await anext(stream)
        assert first.HasField("started")
        rest = asyncio.create_task(_count(stream))
        await stack.stop()
        assert await rest == 60
    assert {name: process.returncode for name, process in stack.processes.items()} == dict.fromkeys(
        stack.settings.names, 0
    )


async def test_a_verifier_told_to_stop_finishes_its_streams(settings: StackSettings) -> None:
    lines: list[str] = []
    async with running_stack(settings, lambda name, line: lines.append(f"{name} {line}")) as stack:
        async with Client(stack.address()) as client:
            stream = client.generate("def f(", **{**REQUEST, "max_tokens": 60})
            await anext(stream)
            for name in ("draft", "verifier"):
                stack.processes[name].send_signal(signal.SIGTERM)
            assert await _count(stream) == 60
            for name in ("draft", "verifier"):
                assert await stack.processes[name].wait() == 0
    assert not [line for line in lines if "lost" in line]


async def _count(stream: AsyncIterator[object]) -> int:
    return sum([len(event.delta.token_ids) async for event in stream])  # type: ignore[attr-defined]


async def test_a_model_that_is_not_there_is_reported(settings: StackSettings) -> None:
    broken = StackSettings(model="/nonexistent/model", draft_model=None)
    with pytest.raises(LaunchError, match="ended with exit code 1"):
        async with running_stack(broken):
            pass


def test_the_command_line_keeps_torch_out() -> None:
    modules = "paceline.cli.app, services.local.up, paceline.cli.demo, gateway.lifespan"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


@pytest.mark.timeout(240)
async def test_up_runs_until_interrupted_and_serves_the_commands(target_folder: str, draft_folder: str) -> None:
    command = [sys.executable, "-m", "paceline.cli.app"]
    ports = [f"--{name}-port={port}" for name, port in (("gateway", 47100), ("draft", 47101), ("verifier", 47102))]
    up = await asyncio.create_subprocess_exec(
        *command, "up", f"--model={target_folder}", f"--draft-model={draft_folder}", *ports,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert up.stdout is not None
    seen: list[str] = []
    async for raw in up.stdout:
        seen.append(raw.decode())
        if "ready: the gateway listens" in seen[-1]:
            break
    assert up.returncode is None, "".join(seen)

    async def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *command, *arguments, "--address=127.0.0.1:47100",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate(stdin.encode())
        return process.returncode or 0, out.decode(), err.decode()

    code, out, err = await run("generate", "abc", "--max-tokens=5", "--seed=1", "--stats")
    assert code == 0, err
    assert "5 tokens in" in err or "tokens in" in err
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
    assert "INVALID_ARGUMENT" in err
    assert "sampling.temperature" in err
    up.send_signal(signal.SIGINT)
    rest = (await up.stdout.read()).decode()
    assert await up.wait() == 0, rest


@pytest.mark.parametrize("num_cores", [1, 2, 4, 64])
def test_cores_are_divided_so_that_all_are_used(num_cores: int) -> None:
    threads = divide_threads(num_cores, with_draft=True)
    assert min(threads) >= 1
    assert threads.verifier <= num_cores
    assert divide_threads(num_cores, with_draft=False).verifier == num_cores
