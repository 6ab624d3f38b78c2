"""A model's chat templates: a conversation as the text that the model continues."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jinja2

from paceline.errors import InvalidArgumentError

Message = dict[str, Any]
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
"""Roles that templates are given without naming them."""
_PROBE = "paceline"


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat template is given."""

    messages: Sequence[Message]
    """Messages have a role, usually a content (a text, or parts as {"type": "text", "text": ...}), and more."""
    tools: Sequence[dict[str, Any]] = ()
    documents: Sequence[dict[str, Any]] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False
    template: str = ""
    """Name of the template, where the model has several."""
    num_characters: int = 0
    """About how much there is to render."""


class ChatTemplate:
    """The templates of one tokenizer of `transformers`, which renders them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._takes = lru_cache(self._find_takes)
        parameters = inspect.signature(tokenizer.apply_chat_template).parameters.values()
        self._own = {each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD} | {"messages"}
        """Names that are no arguments of a template but of whoever renders it."""

    def render(self, conversation: Conversation) -> str:
        """The text, as `apply_chat_template` makes it. Raises InvalidArgumentError for what cannot be rendered.

        A content goes to the template in the form that it reads, and no message is left out in silence.
        """
        if own := sorted(self._own & conversation.arguments.keys()):
            raise InvalidArgumentError("template_arguments", f"{own[0]!r} is not an argument of a template")
        template = self._choose(conversation)
        self._check_roles(template, conversation.messages)
        messages = [self._shaped(template, message) for message in conversation.messages]
        text = self._apply(template, messages, conversation)
        for at in _first_not_shown(messages, text):
            if self._is_ignored(template, messages, at, text, conversation):
                role = messages[at]["role"]
                raise InvalidArgumentError(f"messages[{at}]", f"the chat template leaves out what {role!r} says here")
        return text

    def _choose(self, conversation: Conversation) -> str:
        """The template's source."""
        named, name = self._tokenizer.chat_template, conversation.template
        if name and not (isinstance(named, dict) and name in named):
            names = ", ".join(map(repr, named)) if isinstance(named, dict) else "one without a name"
            raise InvalidArgumentError("chat_template", f"the model has no template {name!r}; it has {names}")
        try:
            template: str = self._tokenizer.get_chat_template(name or None, conversation.tools or None)
        except ValueError as error:
            names = ", ".join(map(repr, named))
            raise InvalidArgumentError("chat_template", f"must name one of the model's templates: {names}") from error
        return template

    def _apply(self, template: str, messages: Sequence[Message], conversation: Conversation) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=template,
                tools=list(conversation.tools) or None,
                documents=list(conversation.documents) or None,
                add_generation_prompt=not conversation.continue_final_message,
                continue_final_message=conversation.continue_final_message,
                tokenize=False,
                **conversation.arguments,
            )
        except Exception as error:  # A template is a program of its own, and fails as programs do.
            reason = str(error) if isinstance(error, jinja2.TemplateError | ValueError) else repr(error)
            raise InvalidArgumentError("messages", f"the chat template refuses them: {reason}") from error
        return text

    def _check_roles(self, template: str, messages: Sequence[Message]) -> None:
        known = _ROLES | _strings(template)
        for at, message in enumerate(messages):
            if message["role"] not in known:
                raise InvalidArgumentError(
                    f"messages[{at}].role", f"the chat template knows no role {message['role']!r}"
                )

    def _shaped(self, template: str, message: Message) -> Message:
        """A message whose content has the form that the template reads, where it reads one alone."""
        content = message.get("content")
        takes_text, takes_parts = self._takes(template)
        if isinstance(content, str) and not takes_text and takes_parts:
            return {**message, "content": [{"type": "text", "text": content}]}
        if isinstance(content, list) and takes_text and not takes_parts:
            return {**message, "content": "\n".join(part.get("text", "") for part in content)}
        return message

    def _find_takes(self, template: str) -> tuple[bool, bool]:
        """Whether a template shows a content that is a text, and one that is parts."""
        return self._shows(template, _PROBE), self._shows(template, [{"type": "text", "text": _PROBE}])

    def _shows(self, template: str, content: Any) -> bool:
        try:
            text = self._apply(template, [{"role": "user", "content": content}], Conversation(()))
        except InvalidArgumentError:
            return False
        # Parts that are printed as they are, brackets and all, are not read.
        return _PROBE in text and f"'{_PROBE}'" not in text and f'"{_PROBE}"' not in text

    def _is_ignored(
        self, template: str, messages: Sequence[Message], at: int, text: str, conversation: Conversation
    ) -> bool:
        """Whether the text would be the same if the message said something else."""
        content = messages[at]["content"]
        other = _PROBE if isinstance(content, str) else [{"type": "text", "text": _PROBE}]
        changed = [*messages[:at], {**messages[at], "content": other}, *messages[at + 1 :]]
        try:
            return self._apply(template, changed, conversation) == text
        except InvalidArgumentError:
            return False


def _first_not_shown(messages: Sequence[Message], text: str) -> list[int]:
    """Of each role the first message that is not in the text as it stands: what is left out is so by role and place."""
    found: dict[str, int] = {}
    for at, message in enumerate(messages):
        if message["role"] not in found and not _is_shown(message, text):
            found[message["role"]] = at
    return list(found.values())


def _is_shown(message: Message, text: str) -> bool:
    """Whether all that a message says is in the text; one that says nothing is. Beside calls of tools templates may
    leave out what is said.
    """
    content = None if message.get("tool_calls") else message.get("content")
    if isinstance(content, list):
        return all(part.get("text", "").strip() in text for part in content if isinstance(part, dict))
    return not isinstance(content, str) or content.strip() in text


@lru_cache
def _strings(template: str) -> frozenset[str]:
    """All strings that stand in a template's expressions."""
    try:
        return frozenset(
            value[1:-1] for _, kind, value in jinja2.Environment(autoescape=True).lex(template) if kind == "string"
        )
    except jinja2.TemplateSyntaxError:  # Rendering says so.
        return frozenset()
