"""How often the target picks what the draft picks, on held-out questions: `python -m models.assistant.evaluation`.

The target answers with the engine's own noise; the draft, as it is served, guesses every token of the answer from the
target's text before it. Rounds follow from that: what the draft would say after a rejection is what it says on the text
that the target decided. The tables of the card are printed.
"""

import argparse
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from models.assistant.held_out import held_out, held_out_prompts
from models.assistant.target import NAME, target_folder
from services.common.sampling_params import SamplingParams
from services.engine.config import Dtype, EngineConfig
from services.engine.engine import Engine
from services.engine.graft_assembly import assemble
from services.engine.sequence import NO_SLOT
from services.engine.sequence import Sequence as Text
from services.local.model_files import shipped_draft

TEMPERATURES = (0.0, 0.7, 1.0)
NUM_TOKENS = 100
PROPOSED = 6
"""Tokens of a proposal."""

logger = logging.getLogger(__name__)


class Positions(NamedTuple):
    """What became of the proposals' tokens."""

    reached: list[int]
    """How often each position was verified with all before it accepted."""
    accepted: list[int]
    """How often it was accepted then."""

    @property
    def rates(self) -> list[float]:
        """Acceptance of each position."""
        return [a / r if r else 0.0 for a, r in zip(self.accepted, self.reached, strict=True)]

    @property
    def num_rounds(self) -> int:
        """Rounds that it took."""
        return self.reached[0]


def positions_of(agreements: Sequence[Sequence[bool]], proposed: int = PROPOSED) -> Positions:
    """Rounds over texts of which each token was guessed or not: a round ends behind the first that was not."""
    positions = Positions([0] * proposed, [0] * proposed)
    for agreement in agreements:
        at = 0
        while at < len(agreement):
            for place in range(proposed):
                if at + place >= len(agreement):
                    break
                positions.reached[place] += 1
                if not agreement[at + place]:
                    break
                positions.accepted[place] += 1
            else:
                place = proposed
            at += place + 1
    return positions


def answers(
    target: Engine,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    *,
    num_tokens: int = NUM_TOKENS,
    adapter_slot: int = NO_SLOT,
    **sampling: float,
) -> list[list[int]]:
    """Prompts with the target's answers behind them; a prompt's seed is its number. `sampling` are more parameters."""
    texts = [
        Text(prompt, len(prompt), _params(temperature, seed, **sampling), adapter_slot=adapter_slot)
        for seed, prompt in enumerate(prompts)
    ]
    end = set(target.facts.description.eos_token_ids)
    for text in texts:
        target.add(text)
    while target.scheduler:
        for result in target.step():
            text = result.sequence
            text.token_ids.append(result.token_ids[-1])
            text.num_settled, text.first_logits = len(text), len(text) - 1
            if text.token_ids[-1] in end or len(text) == text.num_prompt_tokens + num_tokens:
                target.remove(text)
    return [text.token_ids for text in texts]


def agreements(
    draft: Engine, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], temperature: float
) -> list[list[bool]]:
    """Of each text's answer, which tokens the draft picks too, given what is before them."""
    found: list[list[bool]] = []
    for seed, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        read = Text(text[:-1], len(prompt), _params(temperature, seed))
        read.first_logits = len(prompt) - 1
        picks: list[int] = []
        draft.add(read)
        while read.num_uncomputed:
            for result in draft.step():
                picks.extend(result.token_ids)
        draft.remove(read)
        found.append([pick == said for pick, said in zip(picks, text[len(prompt) :], strict=True)])
    return found


def engines(graft: Path) -> tuple[Engine, Engine]:
    """Target and draft, as they are served."""
    target = Engine(EngineConfig(model=str(target_folder()), dtype=Dtype.BFLOAT16))
    draft = EngineConfig(model=str(assemble(graft, target_folder())), is_draft=True, kv_bytes=256 << 20)
    return target, Engine(draft)


def _params(temperature: float, seed: int, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=temperature, seed=seed, **more)


def main() -> None:
    """Prints acceptance by temperature, and by kind of question."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draft", type=Path, default=Path(shipped_draft(NAME) or ""), help="default: the one shipped")
    parser.add_argument("--num-questions", type=int, default=200, help="default: %(default)s")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    questions = held_out()[: arguments.num_questions]
    prompts = held_out_prompts(AutoTokenizer.from_pretrained(target_folder()))[: len(questions)]
    target, draft = engines(arguments.draft)
    logger.info("| | %s | tokens a round |", " | ".join(f"position {at + 1}" for at in range(PROPOSED)))
    for temperature in TEMPERATURES:
        texts = answers(target, prompts, temperature)
        agreed = agreements(draft, prompts, texts, temperature)
        by_kind = defaultdict[str, list[list[bool]]](list)
        for question, agreement in zip(questions, agreed, strict=True):
            by_kind[question.kind].append(agreement)
        for kind, found in (("all", agreed), *sorted(by_kind.items())):
            positions = positions_of(found)
            rates = " | ".join(f"{rate:.2f}" for rate in positions.rates)
            tokens = sum(map(len, found)) / positions.num_rounds
            logger.info("| %s, temperature %g | %s | %.2f |", kind, temperature, rates, tokens)


if __name__ == "__main__":
    main()
