"""The model's tokenizer and chat template, without torch: `tokenizers` and a template rendered by jinja."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jinja2
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from gateway.model.background import Background, give_back_memory
from gateway.model.detokenizer import Detokenizer
from gateway.model.text_bound import longest_token, num_characters
from paceline.errors import FailedPreconditionError, InvalidArgumentError

P = ParamSpec("P")
T = TypeVar("T")
_INLINE = 4096
"""Texts of so many characters or tokens are worked on at once; for longer ones in a thread nobody waits."""
_INLINE_MESSAGES = 64
_LONG = 1 << 18
"""Longer ones take turns."""


class TooManyTokensError(ValueError):
    """A text has more tokens than are wanted. The message is their number, or the least that it can be."""


class ModelTokenizer:
    """Text to token ids and back. Loads a folder or a hub id that holds a tokenizer.json."""

    def __init__(self, source: str) -> None:
        path = _find(source, "tokenizer.json")
        if path is None:
            raise FileNotFoundError(f"{source} has no tokenizer.json; only fast tokenizers are supported")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._longest_token = longest_token(self._tokenizer)
        self._num_characters = num_characters(self._tokenizer)
        self._background = Background()
        config_path = _find(source, "tokenizer_config.json")
        self._config: dict[str, Any] = json.loads(config_path.read_text()) if config_path else {}
        template_path = _find(source, "chat_template.jinja")
        template = template_path.read_text() if template_path else self._config.get("chat_template")
        self._template: str | None = template if isinstance(template, str) else None

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._template is not None

    async def encode(self, text: str, *, add_special_tokens: bool = True, most: int | None = None) -> list[int]:
        """Token ids of a text. Raises TooManyTokensError for more than `most`, if possible before it is tokenized."""
        if most is not None and self._longest_token is not None:
            at_least = -(-len(text.encode()) // self._longest_token)
            if at_least > most:
                raise TooManyTokensError(f"at least {at_least} tokens")
        return await self._run(len(text), self._encode, text, add_special_tokens, most)

    async def encode_chat(self, messages: list[dict[str, str]], most: int | None = None) -> list[int]:
        """Token ids of a conversation, ending where the answer begins.

        Raises FailedPreconditionError without a template, InvalidArgumentError when the template refuses,
        TooManyTokensError for more than `most` tokens.
        """
        size = _INLINE + 1 if len(messages) > _INLINE_MESSAGES else sum(len(each["content"]) for each in messages)
        text = await self._run(size, self._render, messages)
        return await self.encode(text, add_special_tokens=False, most=most)

    async def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        return await self._run(len(token_ids), self._decode, token_ids)

    def num_characters(self, token_ids: list[int]) -> int:
        """About how long their text is."""
        known = len(self._num_characters)
        return sum(self._num_characters[token_id] for token_id in token_ids if token_id < known)

    def detokenizer(self) -> Detokenizer:
        """A detokenizer for one stream of tokens."""
        return Detokenizer(self._tokenizer)

    async def _run(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` makes of a text of this size, where it holds nobody up."""
        if size <= _INLINE:
            return work(*args, **kwargs)
        if size <= _LONG:
            return await asyncio.to_thread(work, *args, **kwargs)
        return await self._background.run(work, *args, **kwargs)

    def _render(self, messages: list[dict[str, str]]) -> str:
        if self._template is None:
            raise FailedPreconditionError("the model has no chat template; use Generate")
        special = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in self._config.items()
            if name.endswith("_token") and value
        }
        try:
            rendered = render_jinja_template(
                conversations=[messages], chat_template=self._template, add_generation_prompt=True, **special
            )
        except jinja2.TemplateError as error:
            raise InvalidArgumentError("messages", f"the chat template refuses them: {error}") from error
        text: str = rendered[0][0]
        return text

    def _encode(self, text: str, add_special_tokens: bool, most: int | None) -> list[int]:
        # The methods for several texts let go of the interpreter's lock; those for one keep it to the end.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        if most is not None and len(encoding) > most:
            raise TooManyTokensError(f"{len(encoding)} tokens")
        ids: list[int] = encoding.ids
        if len(text) > _LONG:
            del encoding
            give_back_memory()
        return ids

    def _decode(self, token_ids: list[int]) -> str:
        (text,) = self._tokenizer.decode_batch([token_ids], skip_special_tokens=True)
        if len(token_ids) > _LONG:
            give_back_memory()
        return str(text)


def _find(source: str, name: str) -> Path | None:
    folder = Path(source)
    if folder.is_dir():
        path = folder / name
        return path if path.exists() else None
    try:
        return Path(hf_hub_download(source, name))
    except EntryNotFoundError:
        return None
