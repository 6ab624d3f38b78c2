"""A draft looks at how much it is given before it goes through it."""

from typing import Any

import pytest

from paceline.errors import InvalidArgumentError
from paceline.internal.v1 import speculation_pb2
from services.draft.fitting import fit

MANY = 100_000


class Unread:
    """Facts that nobody asks for."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("it was gone through")


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("open.bad_words", {"bad_words": [speculation_pb2.TokenSequence()] * MANY}),
        ("open.bad_words[0]", {"bad_words": [speculation_pb2.TokenSequence(token_ids=[1] * MANY)]}),
        ("open.sampling.stop_token_ids", {"sampling": {"stop_token_ids": [1] * MANY}}),
        ("open.sampling.logit_bias", {"sampling": {"logit_bias": dict.fromkeys(range(MANY), 1.0)}}),
    ],
)
def test_too_many_of_anything_are_refused_before_they_are_gone_through(field: str, more: dict[str, Any]) -> None:
    opening = speculation_pb2.Open(token_ids=[1], num_prompt_tokens=1, **more)
    with pytest.raises(InvalidArgumentError, match="at most 1024") as caught:
        fit(opening, Unread())  # type: ignore[arg-type]
    assert [violation.field for violation in caught.value.violations] == [field]
