"""The model's tokenizer, as `transformers` loads and applies it: its ids are what a model's own authors get.

None of it takes torch, whose absence `transformers` allows for.
"""

import asyncio
import threading
from array import array
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from gateway import heap
from gateway.model.background import Background
from gateway.model.chat_template import ChatTemplate, Conversation
from gateway.model.detokenizer import Decoding, Detokenizer
from gateway.model.text_bound import longest_token, num_characters
from gateway.model.text_worker import TextWorker
from paceline.errors import FailedPreconditionError
from services.common.checkpoint import CheckpointError

P = ParamSpec("P")
T = TypeVar("T")
_INLINE = 4096
"""Texts of so many characters or tokens are worked on at once; for longer ones in a thread nobody waits."""
_INLINE_MESSAGES = 64
_LONG = 1 << 18
"""Longer ones take turns, in processes of their own."""


class TooManyTokensError(ValueError):
    """A text has more tokens than are wanted. The message is their number, or the least that it can be."""


class ModelTokenizer:
    """Text to token ids and back. Loads a folder or a hub id."""

    def __init__(self, source: str) -> None:
        """Raises CheckpointError where there is no tokenizer, or none that could give what its authors get."""
        self._tokenizer = tokenizer = _load(source)
        self._backend = backend = tokenizer.backend_tokenizer
        # What a file says of cutting and filling holds for nobody: transformers undoes both at its first call.
        backend.no_truncation()
        backend.no_padding()
        self._is_plain = _is_plain(tokenizer)
        self._longest_token = longest_token(backend) if self._is_plain else None
        self._num_characters = num_characters(backend)
        self._background = Background()
        self._apart = threading.local()
        """A process for each thread of the background."""
        self._special = {token.content: at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = frozenset(self._special.values())
        self._clean_up = _clean_up(tokenizer)
        self._chat_template = ChatTemplate(tokenizer) if tokenizer.chat_template else None

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._chat_template is not None

    async def encode(self, text: str, *, add_special_tokens: bool = True, most: int | None = None) -> list[int]:
        """Token ids of a text. Raises TooManyTokensError for more than `most`, if possible before it is tokenized."""
        if most is not None and self._longest_token is not None and 4 * len(text) > most * self._longest_token:
            at_least = -(-len(text.encode()) // self._longest_token)
            if at_least > most:
                raise TooManyTokensError(f"at least {at_least} tokens")
        if len(text) <= _LONG or not self._is_plain:
            return await self._run(len(text), self._encode, text, add_special_tokens, most)
        packed = await self._background.run(self._encode_apart, text, add_special_tokens, most)
        ids: list[int] = []
        for start in range(0, len(packed), _INLINE):
            ids += packed[start : start + _INLINE]
            await asyncio.sleep(0)
        return ids

    async def encode_chat(self, conversation: Conversation, most: int | None = None) -> list[int]:
        """Token ids of a conversation, ending where the answer begins.

        Raises FailedPreconditionError without a template, InvalidArgumentError when the template refuses,
        TooManyTokensError for more than `most` tokens.
        """
        if self._chat_template is None:
            raise FailedPreconditionError("the model has no chat template; use Generate")
        is_long = len(conversation.messages) > _INLINE_MESSAGES
        size = _INLINE + 1 if is_long else conversation.num_characters
        text = await self._run(size, self._chat_template.render, conversation)
        return await self.encode(text, add_special_tokens=False, most=most)

    async def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Token ids of words as they may occur in a text: each as it is, and behind a space where that is another
        beginning of as many tokens.
        """
        found: list[list[int]] = []
        for word in words:
            plain = await self.encode(word, add_special_tokens=False)
            spaced = await self.encode(f" {word.lstrip()}", add_special_tokens=False)
            found.append(plain)
            if len(spaced) == len(plain) and spaced[:1] != plain[:1]:
                found.append(spaced)
        return [token_ids for token_ids in found if token_ids]

    async def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        if len(token_ids) <= _LONG:
            return await self._run(len(token_ids), self._decode, token_ids)
        return self._cleaned(await self._background.run(lambda: self._worker().decode(token_ids)))

    def num_characters(self, token_ids: list[int]) -> int:
        """About how long their text is."""
        known = len(self._num_characters)
        return sum(self._num_characters[token_id] for token_id in token_ids if token_id < known)

    def special_id(self, text: str) -> int | None:
        """The id of the special token that is called this, if there is one."""
        return self._special.get(text)

    def detokenizer(self, prompt_ids: Sequence[int] = (), *, skip_special_tokens: bool = True) -> Detokenizer:
        """A detokenizer for one stream of tokens behind a prompt."""

        def decode(token_ids: list[int]) -> str:
            text: str = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
            return text

        def is_silent(token_id: int) -> bool:
            skipped = skip_special_tokens and token_id in self._special_ids
            return skipped or self._backend.id_to_token(token_id) is None

        return Detokenizer(Decoding(decode, is_silent, self._clean_up), prompt_ids)

    async def _run(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` makes of a text of this size, where it holds nobody up."""
        if size <= _INLINE:
            return work(*args, **kwargs)
        if size <= _LONG:
            return await asyncio.to_thread(work, *args, **kwargs)
        return await self._background.run(work, *args, **kwargs)

    def _encode(self, text: str, add_special_tokens: bool, most: int | None) -> list[int]:
        # The methods for several texts let go of the interpreter's lock; those for one keep it to the end.
        if self._is_plain:
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        else:
            (encoding,) = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False).encodings
        _check_number(len(encoding), most)
        ids: list[int] = encoding.ids
        if len(text) > _LONG:
            del encoding
            heap.give_back()
        return ids

    def _encode_apart(self, text: str, add_special_tokens: bool, most: int | None) -> "array[int]":
        num_tokens, ids = self._worker().encode(text, add_special_tokens=add_special_tokens, most=most)
        _check_number(num_tokens, most)
        return ids

    def _worker(self) -> TextWorker:
        """The process of this thread."""
        if not hasattr(self._apart, "worker"):
            self._apart.worker = TextWorker(self._backend.to_str())
        worker: TextWorker = self._apart.worker
        return worker

    def _decode(self, token_ids: list[int]) -> str:
        (text,) = self._backend.decode_batch([token_ids], skip_special_tokens=True)
        return self._cleaned(str(text))

    def _cleaned(self, text: str) -> str:
        return text if self._clean_up is None else self._clean_up(text)


def _check_number(num_tokens: int, most: int | None) -> None:
    if most is not None and num_tokens > most:
        raise TooManyTokensError(f"{num_tokens} tokens")


def _load(source: str) -> Any:
    # Imported here, once the process has said whether torch is to be found.
    from transformers import AutoTokenizer, TokenizersBackend

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # Whatever a file holds that is no tokenizer, it is not this program's fault.
        raise CheckpointError(f"{source} has no tokenizer that can be used: {_first_line(error)}") from error
    kind = type(tokenizer)
    if not isinstance(tokenizer, TokenizersBackend):
        raise CheckpointError(f"the tokenizer of {source} ({kind.__name__}) has no fast form (tokenizer.json)")
    if kind._decode is not TokenizersBackend._decode:
        raise CheckpointError(f"the tokenizer of {source} ({kind.__name__}) makes text in a way of its own")
    return tokenizer


def _is_plain(tokenizer: Any) -> bool:
    """Whether nothing is done to a text before the tokenizers library takes it (Code Llama's fills gaps)."""
    from transformers import TokenizersBackend

    return type(tokenizer)._encode_plus is TokenizersBackend._encode_plus


def _clean_up(tokenizer: Any) -> Callable[[str], str] | None:
    """See Decoding. As transformers has it, byte-pair tokenizers clean up nothing unless they insist."""
    is_bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    insists = tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    if not tokenizer.clean_up_tokenization_spaces or (is_bpe and not insists):
        return None
    clean_up: Callable[[str], str] = tokenizer.clean_up_tokenization
    return clean_up


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(": ") if lines else type(error).__name__
