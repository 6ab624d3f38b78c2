"""Digests: chained one token at a time, and never equal for different identities."""

from hypothesis import assume, given
from hypothesis import strategies as st

from services.common.digest import EMPTY_DIGEST, block_digest, extend_digest, identity_digest

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=30)
FIELDS = st.dictionaries(
    st.sampled_from("abc"), st.one_of(st.text(max_size=4), st.integers(0, 99), st.binary(max_size=4))
)


@given(TOKENS, TOKENS)
def test_a_chain_can_be_continued(first: list[int], second: list[int]) -> None:
    assert extend_digest(extend_digest(EMPTY_DIGEST, first), second) == extend_digest(EMPTY_DIGEST, first + second)


@given(TOKENS, TOKENS)
def test_different_tokens_have_different_digests(first: list[int], second: list[int]) -> None:
    assume(first != second)
    assert extend_digest(EMPTY_DIGEST, first) != extend_digest(EMPTY_DIGEST, second)
    assert block_digest(b"parent", first) != block_digest(b"parent", second)


@given(FIELDS, FIELDS)
def test_different_identities_have_different_digests(first: dict[str, object], second: dict[str, object]) -> None:
    typed = [{name: (type(value), value) for name, value in fields.items()} for fields in (first, second)]
    assume(typed[0] != typed[1])
    assert identity_digest(**first) != identity_digest(**second)


def test_fields_cannot_run_into_each_other() -> None:
    assert identity_digest(a="xb", b="") != identity_digest(a="x", b="b")
    assert identity_digest(a="1") != identity_digest(a=1)
    assert block_digest(b"\x01", [2]) != block_digest(b"\x01\x02", [])
