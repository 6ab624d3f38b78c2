"""How conversations begin: who the assistant is told to be, and the first words of the question.

The target writes the rest of the question itself (Magpie, Xu et al. 2024, arXiv 2406.08464). First words steer it to
what people ask an assistant for; a third of the conversations begin without any.
"""

from typing import NamedTuple

import numpy as np

_SYSTEMS = (
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "You are a helpful assistant.",
    "Answer in one or two sentences.",
    "You are a patient teacher who explains with examples.",
    "You are an experienced programmer. Answer with code.",
    "You are a friendly assistant who likes lists.",
)
_SYSTEM_SHARES = (0.7, 0.1, 0.05, 0.05, 0.05, 0.05)
"""The first is what the chat template says where nobody says otherwise."""
_WORDS: dict[str, tuple[str, ...]] = {
    "questions": (
        "What is", "What are", "How do I", "How does", "Why do", "Why is", "Who was", "When", "Where", "Which", "Is it",
        "What happens", "What's the difference between", "How many", "Can you explain", "Does", "Should I",
    ),
    "writing": (
        "Write a short story about", "Write a poem about", "Write a haiku", "Write an email", "Write a letter",
        "Tell me a joke", "Tell me a story", "Describe", "Give me ideas for", "Suggest a name for", "Create a slogan",
        "Write a product description", "Imagine", "Write a dialogue between", "Write a paragraph",
    ),
    "tasks": (
        "Explain", "Summarize", "List", "Give me three", "Name five", "Compare", "Rewrite", "Correct the grammar",
        "Translate", "Plan", "Help me", "Make a table", "Classify", "Calculate", "Solve", "If I have", "Extract",
        "Hello", "Hi", "Thank you", "I feel", "I want to", "My", "Recommend", "Explain like I'm five",
    ),
    "code": (
        "Write a Python function", "Write a Python program that", "Write a function in JavaScript", "Write a SQL query",
        "How do I sort", "What does this code do?\n\n```python\n", "Fix this code:\n\n```", "Write a class in Python",
        "Explain recursion", "Write a bash script", "def ", "Write an HTML page", "How do I read a file in Python",
        "Write a regular expression", "Return as JSON", "Write a C program", "Implement",
    ),
    "languages": (
        "Was ist", "Schreibe", "Erkläre", "Wie kann ich", "Qu'est-ce que", "Écris", "Explique", "Comment", "¿Qué es",
        "Escribe", "¿Cómo", "Che cos'è", "Scrivi", "O que é", "Escreva", "日本", "こんにちは", "请", "Что такое",
        "Translate to German:", "Translate to French:", "Translate to Spanish:", "How do you say",
    ),
}  # fmt: skip
FREE = "free"
KINDS = (FREE, *_WORDS)
"""Kinds of prompts, in the order of their numbers; those that are free have no first words."""
_KIND_SHARES = (0.30, 0.15, 0.13, 0.17, 0.15, 0.10)


class Opening(NamedTuple):
    """What a conversation is given."""

    kind: int
    system: str
    words: str


def draw_opening(generator: np.random.Generator) -> Opening:
    """An opening at random."""
    kind = int(generator.choice(len(KINDS), p=_KIND_SHARES))
    system = _SYSTEMS[int(generator.choice(len(_SYSTEMS), p=_SYSTEM_SHARES))]
    words = _WORDS.get(KINDS[kind], ("",))
    return Opening(kind, system, words[int(generator.integers(len(words)))])
