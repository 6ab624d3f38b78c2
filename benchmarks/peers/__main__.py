"""`make bench-peers`: OpenVINO GenAI and llama.cpp beside Paceline, in one run; writes docs/benchmarks/peers.md."""

import argparse
import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.family.build import build_pair
from benchmarks.family.shape import find_shape
from benchmarks.page import PAGES, WORK_DIR
from benchmarks.peers.bandwidth import read_bandwidth
from benchmarks.peers.contenders import PACELINE, Contender, Models, Paceline
from benchmarks.peers.convert import to_gguf, to_openvino
from benchmarks.peers.llama_server import LlamaServer
from benchmarks.peers.openvino_peer import OpenVino
from benchmarks.peers.page import Report, write_peers
from benchmarks.peers.runs import (
    QUICK,
    WHOLE,
    Changed,
    Plan,
    Speed,
    answers,
    differing,
    measure_prompt,
    measure_speed,
)
from services.local.pair import shipped_model

_PAIR = "6-78"
_PROMPT_TOKENS = 64
_VOCAB = 8192
_SEED = 11
_OURS = {PACELINE: "int8", f"{PACELINE}, draft in bfloat16": "dtype"}
"""Weights of the draft, in 8 bits unless said otherwise."""
_WAYS = {"greedy": 0.0, "temperature 1, seeded": 1.0}


def main() -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--peers", type=Path, default=WORK_DIR.parent / "peers", help="where they are installed")
    parser.add_argument("--quick", action="store_true", help="one stream and eight, fewer runs: 6 minutes, not 20")
    given = parser.parse_args()
    page = write_peers(asyncio.run(_measure(given.peers, QUICK if given.quick else WHOLE)), PAGES)
    Console().print(Markdown(page.read_text()))
    return 0


async def _measure(peers: Path, plan: Plan) -> Report:
    shape = find_shape(_PAIR)
    built = build_pair(shape, WORK_DIR / "family" / shape.name)
    models, other = Models(built.target, built.draft), Models(built.target, shipped_model("draft"))
    bandwidth = read_bandwidth()
    speeds: dict[str, dict[int, dict[str, Speed]]] = {}
    long_prompts: dict[str, dict[str, float]] = {}
    prompts = _prompts()
    for precision, int8 in (("bfloat16", False), ("8 bits a weight", True)):
        async with AsyncExitStack() as resources:
            contenders = await _start(resources, peers, models, "draft", int8=int8)
            speeds[precision] = await measure_speed(contenders, prompts, plan)
            long_prompts[precision] = await measure_prompt(contenders, prompts)
    changed = await _changed(peers, models, other, [next(prompts) for _ in range(plan.compared)])
    return Report(plan, _PAIR, _versions(peers), bandwidth, 2 * shape.target_weights, speeds, long_prompts, changed)


async def _start(
    resources: AsyncExitStack, peers: Path, models: Models, draft: str, *, int8: bool
) -> dict[str, Contender]:
    """Starts all three; `draft` names the draft among what was converted."""
    folders = [WORK_DIR / "peers" / _PAIR / name for name in ("target", draft)]
    of_openvino = Models(*(to_openvino(peers, *pair, int8=int8) for pair in zip(models, folders, strict=True)))
    of_llama = Models(*(to_gguf(peers, *pair, int8=int8) for pair in zip(models, folders, strict=True)))
    contenders: dict[str, Contender] = {}
    for name, draft_weights in _OURS.items():
        if not int8 or draft_weights == "int8":
            ours = Paceline.start(models, "int8" if int8 else "dtype", draft_weights)
            contenders[name] = await resources.enter_async_context(ours)
    python = peers / "openvino" / "bin" / "python"
    contenders["OpenVINO GenAI"] = await resources.enter_async_context(OpenVino.start(python, of_openvino))
    server = peers / "llama" / "build" / "bin" / "llama-server"
    contenders["llama.cpp"] = await resources.enter_async_context(
        LlamaServer.start(server, of_llama, max(WHOLE.streams))
    )
    return contenders


async def _changed(
    peers: Path, models: Models, other: Models, prompts: list[list[int]]
) -> dict[str, dict[str, Changed]]:
    """How many streams speculation changes, with the pair's draft and with another one."""
    said: dict[tuple[str, str], list[list[list[int]]]] = {}
    for pair, name in ((models, "draft"), (other, "another")):
        async with AsyncExitStack() as resources:
            contenders = await _start(resources, peers, pair, name, int8=False)
            for way, temperature in _WAYS.items():
                for contender_name, contender in contenders.items():
                    found = said.setdefault((way, contender_name), [])
                    if pair is models:
                        found.append(await answers(contender, prompts, temperature, 0))
                    found.append(await answers(contender, prompts, temperature, contender.settings[0]))
    changed: dict[str, dict[str, Changed]] = {}
    for (way, name), (plain, drafted, by_another) in said.items():
        counts = Changed(differing(plain, drafted), differing(plain, by_another), len(prompts))
        changed.setdefault(way, {})[name] = counts
    return changed


def _prompts() -> Iterator[list[int]]:
    rng = random.Random(_SEED)
    while True:
        yield [rng.randrange(1, _VOCAB) for _ in range(_PROMPT_TOKENS)]


def _versions(peers: Path) -> dict[str, str]:
    code = "from importlib.metadata import version; print(version('openvino-genai'))"
    said = subprocess.run(
        [peers / "openvino" / "bin" / "python", "-c", code], check=True, capture_output=True, text=True
    )
    sdist = next((peers / "sdist").glob("llama_cpp_python-*.tar.gz"), None)
    of_llama = sdist.name.removeprefix("llama_cpp_python-").removesuffix(".tar.gz") if sdist else "unknown"
    return {"OpenVINO GenAI": said.stdout.strip(), "llama.cpp of llama-cpp-python": of_llama}


if __name__ == "__main__":
    sys.exit(main())
