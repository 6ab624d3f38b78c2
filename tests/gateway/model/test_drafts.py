"""A draft is used when it knows the target's tokens, whatever its matrices are padded to; else it is said why not."""

import logging
from pathlib import Path

import pytest

from gateway.lifespan import gateway_lifespan
from paceline.client import Client
from paceline.v1 import model_pb2
from support.fakes import INFO, FakeDraft, FakeVerifier, serve_fakes
from support.served import served
from support.system import collect, gateway_settings


def _info(name: str, vocab_size: int, digest: str) -> model_pb2.ModelInfo:
    info = model_pb2.ModelInfo()
    info.CopyFrom(INFO)
    info.id, info.vocab_size, info.vocabulary_digest = name, vocab_size, digest
    return info


@pytest.mark.parametrize(
    ("vocab_size", "digest", "problem"),
    [
        (256, "ab", ""),
        (320, "ab", ""),
        (128, "ab", ""),
        (256, "", ""),
        (256, "cd", "the tokenizer of small is another than the model's"),
        (320, "", "small has 320 tokens and the model 256"),
    ],
)
async def test_drafts_are_matched_by_what_their_ids_stand_for(
    tokenizer_folder: Path, caplog: pytest.LogCaptureFixture, vocab_size: int, digest: str, problem: str
) -> None:
    draft = FakeDraft(info=_info("small", vocab_size, digest))
    verifier = FakeVerifier(info=_info("fake", 256, "ab"), commits_first=True)
    if not problem:
        verifier.commit_when = draft.opened  # It is opened behind the first commit, while the text goes on.
    async with serve_fakes(verifier) as a, serve_fakes(draft) as b:
        settings = gateway_settings("it", str(tokenizer_folder), [a], [b])
        async with served(gateway_lifespan(settings)) as address, Client(address) as client:
            with caplog.at_level(logging.ERROR):
                await collect(client.generate([70, 71], max_tokens=9))
                for _ in range(3):
                    (model,) = await client.list_models()
    assert model.draft_problem.startswith(problem)
    assert bool(model.draft_problem) == bool(problem)
    assert bool(model.draft.id) == bool(draft.opens) == (not problem)
    told = [record for record in caplog.records if "is not used" in record.getMessage()]
    assert len(told) == bool(problem)
