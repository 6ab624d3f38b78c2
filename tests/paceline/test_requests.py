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


def test_what_only_a_template_reads_goes_to_it_as_it_is() -> None:
    called = {"role": "assistant", "tool_calls": [{"b": 1, "a": 2.5}]}
    answered = {"role": "tool", "content": "", "tool_call_id": "c"}
    parts = {"role": "user", "content": [{"type": "text", "text": "x"}], "name": "é"}
    said = chat_request([called, answered, parts], {}).messages
    assert [m.fields for m in said] == [
        '{"tool_calls": [{"b": 1, "a": 2.5}]}',
        '{"content": "", "tool_call_id": "c"}',
        '{"name": "é"}',
    ]
    assert [part.text for part in said[2].parts] == ["x"]


def test_options_of_a_chat_go_where_the_protos_have_them() -> None:
    request = chat_request(
        [("user", "x")],
        {"tools": [{"z": 1, "a": 2}], "template_arguments": {"t": False}, "continue_final_message": True, "top_k": 3},
    )
    assert list(request.tools) == ['{"z": 1, "a": 2}']
    assert (request.template_arguments, request.continue_final_message) == ('{"t": false}', True)
    assert request.sampling.top_k == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tools": {"a": 1}}, "tools: a list of objects"),
        ({"tools": ["a"]}, r"tools\[0\]: an object is taken, not str 'a'"),
        ({"template_arguments": [1]}, "template_arguments: an object is taken"),
        ({"chat_template": 1}, "chat_template"),
        ({"tool": []}, "no option 'tool'; did you mean 'tools'"),
    ],
)
def test_wrong_options_of_a_chat_are_refused(options: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        chat_request([("user", "x")], options)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user"}], r"messages\[0\] must hold a content"),
        ([{"content": "a"}], "the role must be text, not NoneType"),
        ([{"role": "user", "content": "a", "name": {1, 2}}], r"messages\[0\]: .*set"),
        ([("user", "a"), "bye"], r"messages\[1\] must be .*not str 'bye'"),
        ([("user", "a", "b")], "the pair"),
        ([{"role": "user", "content": 1}], r"messages\[0\]: the content must be text or a list of parts, not int 1"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"messages\[0\].content\[0\] must be .*'image'"),
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
        ({"bad_words": "END"}, "bad_words: a list of strings"),
        ({"tools": []}, "no option 'tools'"),
        ({"max_tokens": "many"}, "max_tokens"),
    ],
)
def test_wrong_options_are_refused(options: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        generate_request("x", options)
