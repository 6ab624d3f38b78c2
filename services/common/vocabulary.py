"""Whether two models mean the same by a token id."""

from typing import Protocol


class HasTokens(Protocol):
    """What a model says of its tokens, in messages and in an engine alike."""

    @property
    def vocab_size(self) -> int:
        """How many it has, those of a padded matrix included."""

    @property
    def vocabulary_digest(self) -> str:
        """Digest over which token each id stands for; empty where there is no tokenizer beside the model."""


def problem_of(name: str, draft: HasTokens, target: HasTokens) -> str:
    """Why a draft of this name is of no use to a target, in a sentence; empty while nothing is known against it.

    Where both have a tokenizer it is the same for both: then matrices may be padded to other sizes. Where one has none,
    as many tokens must do.
    """
    if draft.vocabulary_digest and target.vocabulary_digest:
        if draft.vocabulary_digest == target.vocabulary_digest:
            return ""
        return f"the tokenizer of {name} is another than the model's, so none of its tokens would fit"
    if draft.vocab_size == target.vocab_size:
        return ""
    return f"{name} has {draft.vocab_size} tokens and the model {target.vocab_size}"
