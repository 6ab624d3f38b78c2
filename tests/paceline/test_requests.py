"""What programs say becomes the messages of a gateway; what cannot be one is refused in words, at the call."""

from typing import Any

import pytest

from paceline.requests import chat_request, generate_request
from paceline.v1 import inference_pb2


def test_options_go_where_the_protos_have_them() -> None:
    request = generate_request("x", {"model": "m", "n": 2, "max_tokens": 3, "stop": ["a"], "speculation": False})
    assert (request.model, request.n, request.prompt) == ("m", 2, "x")
    assert (request.sampling.max_tokens, list(request.sampling.stop)) == (3, ["a"])
    assert request.speculation.mode == inference_pb2.Speculation.MODE_OFF
    assert list(generate_request([1, 2], {}).token_ids.ids) == [1, 2]


def test_messages_are_dictionaries_or_pairs() -> None:
    said = chat_request([{"content": "hi", "role": "user"}, ("assistant", "yes?"), ["user", "bye"]], {}).messages  # type: ignore[list-item]
    assert [(m.role, m.content) for m in said] == [("user", "hi"), ("assistant", "yes?"), ("user", "bye")]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user"}], r"messages\[0\] must hold 'role' and 'content'.*it holds 'role'"),
        ([{"role": "user", "content": "a", "name": "b"}], "'role', 'content', 'name'"),
        ([("user", "a"), "bye"], r"messages\[1\] must be .*not str 'bye'"),
        ([("user", "a", "b")], "the pair"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\]: the content must be text, not list"),
        ([(1, "a")], "the role must be text, not int 1"),
        ({"role": "user", "content": "a"}, "messages are a list"),
        ("hi", "messages are a list"),
    ],
)
def test_other_messages_are_refused_in_words(messages: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        chat_request(messages, {})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temprature": 0}, "no option 'temprature'; did you mean 'temperature'"),
        ({"zzz": 0}, "no option 'zzz'$"),
        ({"stop": "END"}, "stop: a list of strings"),
        ({"max_tokens": "many"}, "max_tokens"),
    ],
)
def test_wrong_options_are_refused(options: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        generate_request("x", options)
