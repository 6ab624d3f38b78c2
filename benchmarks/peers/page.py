"""The page that puts peers beside Paceline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import pyplot as plt

from benchmarks.page import machine, table, write_page
from benchmarks.peers.contenders import PACELINE
from benchmarks.peers.runs import LONG_PROMPT, MANY_TOKENS, NUM_TOKENS, Changed, Plan, Speed

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_COLOURS = {PACELINE: "#4477aa", "OpenVINO GenAI": "#cc6677", "llama.cpp": "#ddaa33"}
_OTHER_COLOUR = "#88ccee"


class Report(NamedTuple):
    """Everything that one run measured. Speeds by precision, number of streams and contender."""

    plan: Plan
    pair: str
    versions: Mapping[str, str]
    bandwidth: float
    """Bytes a second."""
    target_bytes: int
    """Bytes of weights of the target, as bfloat16."""
    speeds: Mapping[str, Mapping[int, Mapping[str, Speed]]]
    prompts: Mapping[str, Mapping[str, float]]
    """Seconds of a long prompt, by precision and contender."""
    changed: Mapping[str, Mapping[str, Changed]]
    """By temperature and contender."""


def write_peers(report: Report, folder: Path) -> Path:
    """Writes peers.md and peers.png into a folder and returns the page's path."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    limit = report.bandwidth / report.target_bytes
    lines = [
        "# Beside OpenVINO GenAI and llama.cpp",
        "",
        f"Written by `make bench-peers`: {machine()}; {features()}; memory is read at "
        f"**{report.bandwidth / 1e9:.1f} GB/s** (two threads, a gibibyte that was written, the best of several "
        f"readers). {versions}. Everything on this page comes from one run.",
        "",
        f"The pair is `{report.pair}` of [the family](../measuring.md): the same weights, prompts of 64 random tokens "
        f"and number of tokens ({NUM_TOKENS} a stream, {MANY_TOKENS} where there are 32) for all, greedy, in turns, "
        f"prompts included; medians of {report.plan.repeats} runs. Peers draft at the best of several settings, found "
        "by a trial at each number of streams; Paceline chooses by itself, begins without having met the pair, and has "
        "its draft in 8 bits unless said otherwise. All weights read once a token at the speed of memory would be "
        f"{limit:.0f} tokens/s for one stream in bfloat16.",
        "",
    ]
    for precision, speeds in report.speeds.items():
        lines += [f"## {precision}", "", *_speeds(speeds), *_prompts(report.prompts.get(precision, {}))]
    lines += [
        "## Does speculation change the output?",
        "",
        f"Streams of {NUM_TOKENS} tokens, each alone, whose tokens are not those that the same system gives without "
        "speculation: with the pair's draft, and with another draft.",
        "",
        *_changed(report.changed),
        "![Tokens a second](peers.png)",
        "",
    ]
    page = write_page(folder, "peers", lines)
    _plot(report, folder / "peers.png")
    return page


def features() -> str:
    """What of the processor products of matrices use."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text().split("flags", 1)[-1].split("\n", 1)[0].split() if path.exists() else []
    return " ".join(feature for feature in FEATURES if feature in flags) or "features unknown"


def _speeds(speeds: Mapping[int, Mapping[str, Speed]]) -> list[str]:
    rows = [
        (
            str(count) if first else "",
            name,
            f"{speed.plain:.0f}",
            f"{speed.speculating:.0f}",
            f"{speed.speculating / speed.plain:.2f}",
            "its own choice" if name.startswith(PACELINE) else str(speed.num_drafted),
        )
        for count, by_name in speeds.items()
        for first, (name, speed) in zip([True, *[False] * len(by_name)], by_name.items(), strict=False)
    ]
    return table(("streams", "", "plain, tokens/s", "speculating, tokens/s", "ratio", "drafted a round"), rows)


def _prompts(seconds: Mapping[str, float]) -> list[str]:
    if not seconds:
        return []
    said = ", ".join(f"{name} {found:.2f} s" for name, found in seconds.items())
    return [f"A prompt of {LONG_PROMPT:,} tokens to its first token: {said}.", ""]


def _changed(changed: Mapping[str, Mapping[str, Changed]]) -> list[str]:
    rows = [
        (way, name, f"{found.by_draft} of {found.num_streams}", f"{found.by_another} of {found.num_streams}")
        for way, by_name in changed.items()
        for name, found in by_name.items()
    ]
    return table(("", "", "its draft", "another draft"), rows)


def _plot(report: Report, path: Path) -> None:
    figure, all_axes = plt.subplots(1, len(report.speeds), figsize=(5 * len(report.speeds), 3.5), squeeze=False)
    for axes, (precision, speeds) in zip(all_axes[0], report.speeds.items(), strict=True):
        streams = report.plan.streams
        names: Sequence[str] = list(next(iter(speeds.values())))
        for name in names:
            colour = _COLOURS.get(name, _OTHER_COLOUR)
            axes.plot(streams, [speeds[n][name].plain for n in streams], "--", color=colour)
            best = [max(speeds[n][name].plain, speeds[n][name].speculating) for n in streams]
            axes.plot(streams, best, "o-", color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(streams, [str(count) for count in streams])
        axes.set_xlabel("streams")
        axes.set_ylabel("tokens/s (dashed: plain)")
        axes.set_title(precision)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
