"""What the beginning of a prompt is known by."""

from typing import Any

from gateway.generation.prefix import prefix_key
from paceline.internal.v1 import speculation_pb2
from paceline.v1 import inference_pb2

SYSTEM = {"role": "system", "content": "You are terse. " * 100}
FIRST = {"role": "user", "content": "What is a paceline?"}


def chat(*messages: dict[str, str]) -> inference_pb2.ChatRequest:
    return inference_pb2.ChatRequest(messages=messages)


def key(request: Any = None, ids: Any = (), namespace: str = "me", public: int = 0, adapter: str = "") -> str:
    tenant = speculation_pb2.TenantAccess(namespace=namespace, num_public_tokens=public)
    return prefix_key(request or inference_pb2.GenerateRequest(), ids, tenant, adapter)


def test_all_turns_of_a_conversation_have_one_key_and_other_conversations_others() -> None:
    turns = [chat(SYSTEM, FIRST), chat(SYSTEM, FIRST, {"role": "assistant", "content": "Riders in a row."}, FIRST)]
    assert len({key(turn) for turn in turns}) == 1
    other = chat(SYSTEM, {"role": "user", "content": "What is a draft?"})
    assert key(other) != key(turns[0]), "though their system message is the same"
    assert key(chat(SYSTEM)) != key(turns[0])


def test_a_prompt_that_goes_on_keeps_the_key_of_its_beginning() -> None:
    text = list(range(1000))
    assert key(ids=text) == key(ids=text[:256]) != key(ids=text[:255])
    assert key(ids=text) != key(ids=[9, *text])


def test_what_all_callers_share_is_no_beginning() -> None:
    shared = [7] * 300
    assert key(ids=[*shared, 1, 2], public=300) != key(ids=[*shared, 3, 4], public=300)
    assert key(ids=shared, public=300) == key(ids=shared), "where there is nothing else it is"


def test_tenants_and_adapters_have_keys_of_their_own() -> None:
    assert len({key(ids=[1]), key(ids=[1], namespace="you"), key(ids=[1], adapter="ab")}) == 3
    assert len(key()) == 16
