"""What adapters cost: one for all streams, another for each, none used though many are stored; and a cold one."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.heavy import build_heavy
from benchmarks.page import machine, table, write_page
from benchmarks.speculation import NUM_TOKENS, PROMPT_TOKENS, held_out_prompts
from benchmarks.systems import Measured, median, through_gateway
from paceline import Client
from services.common.lora.config import CONFIG_NAME, WEIGHTS_NAME, tensor_names
from services.local.launcher import running
from services.local.pair import Pair
from services.local.system import SystemSettings

RANK = 16
NUM_STREAMS = 8
NUM_STORED = 32
REPEATS = 5
COLD_REPEATS = 7
COLD_SECONDS = 0.5
_CONFIG = """{
  "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "%s", "r": %d, "lora_alpha": %d,
  "bias": "none", "target_modules": "all-linear"
}"""


class AdapterRatio(NamedTuple):
    """A measure with a floor: the median of ratios of neighbouring runs."""

    name: str
    value: float
    floor: float
    ours: float
    others: float
    """Tokens a second, medians."""

    @property
    def holds(self) -> bool:
        """Whether it keeps its floor."""
        return self.value >= self.floor


class AdapterReport(NamedTuple):
    """Everything that one run measured."""

    ratios: list[AdapterRatio]
    cold_seconds: float
    """What loading an adapter from the store adds to the time to the first token: the median."""
    cold_first: float
    warm_first: float
    """Seconds to the first token with an adapter that was in the store alone, and with the same one later."""
    adapter_bytes: int
    mismatches: int
    """Outputs of the base model that differed with and without support of adapters."""

    @property
    def holds(self) -> bool:
        """Whether every floor and the ceiling were kept."""
        return not self.mismatches and self.cold_seconds < COLD_SECONDS and all(ratio.holds for ratio in self.ratios)


def run(shipped: str, work_dir: Path) -> AdapterReport:
    """Measures everything. Takes some eight minutes on two cores."""
    heavy = build_heavy(shipped, work_dir / "heavy")
    folders = [_save_adapter(heavy, work_dir / "adapters" / str(number), number) for number in range(NUM_STORED)]
    prompts = held_out_prompts(shipped, (1 + REPEATS) * NUM_STREAMS + COLD_REPEATS + 1)
    return asyncio.run(_measure(heavy, folders, prompts))


def write_adapters(report: AdapterReport, folder: Path) -> Path:
    """Writes adapters.md into a folder and returns its path."""
    lines = [
        "# Adapters: many in one batch",
        "",
        f"Written by `make bench`: {machine()}. Heavy target (see [speculation](speculation.md)), bfloat16, no draft, "
        f"{NUM_STREAMS} streams through the gateway, prompts of {PROMPT_TOKENS} tokens, {NUM_TOKENS} produced, prompt "
        f"processing included, greedy. Adapters of rank {RANK} on all linear layers, {report.adapter_bytes / 1e6:.1f} "
        f"MB each, {NUM_STORED} of them stored. All systems in turns on the same prompts, medians of the ratios of "
        f"{REPEATS} pairs.",
        "",
        *table(
            ("measure", "ratio", "floor", "tokens/s"),
            [(r.name, f"**{r.value:.2f}**", f"{r.floor:g}", f"{r.ours:.1f} / {r.others:.1f}") for r in report.ratios],
        ),
        f"An adapter that only the store has adds **{report.cold_seconds * 1e3:.0f} ms** to the time to the first "
        f"token of one stream ({report.cold_first * 1e3:.0f} ms instead of {report.warm_first * 1e3:.0f} ms with the "
        f"same adapter loaded; median of {COLD_REPEATS}; ceiling {COLD_SECONDS * 1e3:.0f} ms).",
        "",
        f"Outputs of the base model that differed with and without support of adapters: **{report.mismatches}**.",
        "",
    ]
    return write_page(folder, "adapters", lines)


def _save_adapter(model: str, folder: Path, seed: int) -> Path:
    """A random adapter of all linear layers, in bfloat16, small enough for the text to stay one."""
    if (folder / WEIGHTS_NAME).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))  # type: ignore[no-untyped-call]
    rng = np.random.default_rng(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in shapes.named_modules():
        if type(module) is not torch.nn.Linear or name == "lm_head":
            continue
        for tensor_name, shape in zip(
            tensor_names(name), ((RANK, module.in_features), (module.out_features, RANK)), strict=True
        ):
            values = rng.standard_normal(shape, np.float32) * 0.01
            tensors[tensor_name] = torch.from_numpy(values).to(torch.bfloat16)
    save_file(tensors, folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(_CONFIG % (Path(model).name, RANK, RANK))
    return folder


async def _measure(model: str, folders: Sequence[Path], prompts: Sequence[Sequence[int]]) -> AdapterReport:
    runs: dict[str, list[Measured]] = {"none": [], "unused": [], "one": [], "each": []}
    async with AsyncExitStack() as resources:
        clients = []
        for adapter_store in (False, True):
            pair = Pair(model=model, dtype="bfloat16", adapters=NUM_STREAMS + 1 if adapter_store else None)
            settings = SystemSettings((pair,), log_level="WARNING", adapter_store=adapter_store)
            launcher = await resources.enter_async_context(running(settings))
            clients.append(await resources.enter_async_context(Client(launcher.address())))
        without, client = clients
        for number, folder in enumerate(folders):
            await client.upload_adapter(folder, f"a{number}")
        names = [f"a{number}" for number in range(NUM_STREAMS)]
        rest = iter(prompts)
        ways: list[tuple[str, Client, list[str]]] = [
            ("none", without, [""] * NUM_STREAMS),
            ("unused", client, [""] * NUM_STREAMS),
            ("one", client, [f"a{NUM_STREAMS}"] * NUM_STREAMS),  # Another: none finds a prompt computed.
            ("each", client, names),
        ]
        for repeat in range(-1, REPEATS):
            chosen = [next(rest) for _ in range(NUM_STREAMS)]
            for way, who, adapters in ways if repeat % 2 else reversed(ways):
                result = await through_gateway(who, chosen, NUM_TOKENS, speculation=False, adapters=adapters)
                if repeat >= 0:  # The one before is to warm up.
                    runs[way].append(result)
        cold, warm = await _cold(client, [next(rest) for _ in range(COLD_REPEATS + 1)])
    pairs = zip(runs["none"], runs["unused"], strict=True)
    return AdapterReport(
        [
            _ratio(f"{NUM_STREAMS} different adapters / base model only", runs, "each", "unused", 0.75),
            _ratio("1 adapter on all / base model only", runs, "one", "unused", 0.85),
            _ratio(f"base model only, {NUM_STORED} adapters stored / no adapter support", runs, "unused", "none", 0.98),
        ],
        statistics.median(a - b for a, b in zip(cold, warm, strict=True)),
        statistics.median(cold),
        statistics.median(warm),
        (folders[0] / WEIGHTS_NAME).stat().st_size,
        sum(a.token_ids != b.token_ids for a, b in pairs),
    )


async def _cold(client: Client, prompts: Sequence[Sequence[int]]) -> tuple[list[float], list[float]]:
    """Seconds to the first token with adapters that no slot has, and with the same ones right after."""
    cold: list[float] = []
    warm: list[float] = []
    for number, prompt in enumerate(prompts):
        name = f"a{NUM_STREAMS + 1 + number}"
        seconds = [await _first_token(client, [begin, *prompt[1:]], name) for begin in (5, 6)]
        if number:  # The first is to warm up.
            cold.append(seconds[0])
            warm.append(seconds[1])
    return cold, warm


async def _first_token(client: Client, prompt: Sequence[int], adapter: str) -> float:
    """Seconds to the first token. A prompt that begins otherwise shares no computed block."""
    started = time.perf_counter()
    events = client.generate(prompt, adapter=adapter, max_tokens=1, temperature=0, ignore_eos=True, speculation=False)
    seconds = 0.0
    async for event in events:
        if event.HasField("delta"):
            seconds = time.perf_counter() - started
    return seconds


def _ratio(name: str, runs: dict[str, list[Measured]], ours: str, others: str, floor: float) -> AdapterRatio:
    pairs = zip(runs[ours], runs[others], strict=True)
    value = statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in pairs)
    return AdapterRatio(name, value, floor, median(runs[ours]), median(runs[others]))
