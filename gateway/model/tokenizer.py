"""The model's tokenizer and chat template, without torch: `tokenizers` and a template rendered by jinja."""

import asyncio
import json
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from gateway.model.detokenizer import Detokenizer
from paceline.errors import FailedPreconditionError, InvalidArgumentError

_INLINE_CHARACTERS = 4096
"""Texts up to this length are tokenized at once; longer ones in a thread, so that nobody waits for them."""


class ModelTokenizer:
    """Text to token ids and back. Loads a folder or a hub id that holds a tokenizer.json."""

    def __init__(self, source: str) -> None:
        path = _find(source, "tokenizer.json")
        if path is None:
            raise FileNotFoundError(f"{source} has no tokenizer.json; only fast tokenizers are supported")
        self._tokenizer = Tokenizer.from_file(str(path))
        config_path = _find(source, "tokenizer_config.json")
        self._config: dict[str, Any] = json.loads(config_path.read_text()) if config_path else {}
        template_path = _find(source, "chat_template.jinja")
        template = template_path.read_text() if template_path else self._config.get("chat_template")
        self._template: str | None = template if isinstance(template, str) else None

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._template is not None

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        if len(text) <= _INLINE_CHARACTERS:
            return self._encode(text, add_special_tokens)
        return await asyncio.to_thread(self._encode, text, add_special_tokens)

    async def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, ending where the answer begins.

        Raises FailedPreconditionError without a template, InvalidArgumentError when the template refuses.
        """
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
        return await self.encode(rendered[0][0], add_special_tokens=False)

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def detokenizer(self) -> Detokenizer:
        """A detokenizer for one stream of tokens."""
        return Detokenizer(self._tokenizer)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids


def _find(source: str, name: str) -> Path | None:
    folder = Path(source)
    if folder.is_dir():
        path = folder / name
        return path if path.exists() else None
    try:
        return Path(hf_hub_download(source, name))
    except EntryNotFoundError:
        return None
