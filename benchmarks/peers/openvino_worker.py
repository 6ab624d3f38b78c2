"""OpenVINO GenAI, run by its own interpreter: reads requests as lines of JSON, answers each with a line.

    python openvino_worker.py TARGET [DRAFT] [--precision bf16]

A request has `prompts` (token ids), `num_tokens`, `num_drafted` (0 to leave the draft out, where there is one),
`temperature` and `seed`; the answer `token_ids`, `seconds` and `first_seconds`. Nothing of Paceline is imported here.
"""

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

_CACHE_GB = 2


def main() -> None:
    """Serves until its input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("draft", nargs="?")
    parser.add_argument("--precision", default="bf16")
    given = parser.parse_args()
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = _CACHE_GB
    scheduler.enable_prefix_caching = False
    properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": given.precision}
    if given.draft:
        properties["draft_model"] = genai.draft_model(given.draft, "CPU", **properties)
    pipeline = genai.ContinuousBatchingPipeline(given.target, scheduler, "CPU", properties)
    _say({"ready": True})
    for line in sys.stdin:
        _say(_answer(pipeline, json.loads(line), has_draft=bool(given.draft)))


def _answer(pipeline: Any, request: dict[str, Any], *, has_draft: bool) -> dict[str, Any]:
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = request["num_tokens"]
    config.ignore_eos = True
    if request["temperature"]:
        config.do_sample, config.temperature, config.rng_seed = True, request["temperature"], request["seed"]
        config.top_p, config.top_k = 1.0, 1 << 31
    if has_draft:
        config.num_assistant_tokens = request["num_drafted"]
    tensors = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt in request["prompts"]]
    started = time.perf_counter()
    results = pipeline.generate(tensors, [config] * len(tensors))
    seconds = time.perf_counter() - started
    return {"token_ids": [list(map(int, result.m_generation_ids[0])) for result in results], "seconds": seconds}


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
