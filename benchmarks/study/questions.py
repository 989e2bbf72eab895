"""Questions with four answers each, made of texts that no run trains on."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_NUM_ANSWERS = 4
_NOUN = re.compile(r"^([A-Z][a-z]+) \\[^\n]*\bn\.([^\n]*\n(?:   [^ \n].*\n)*)", re.M)
"""The head of an entry, with what follows it until the next paragraph."""
_ASIDE = re.compile(r"\[[^\]]*\]|\([^)]*\)|[{}]")
_EXPLANATION = re.compile(r"(?:[;,:.] |[^A-Z]*\b1\. )*([A-Z][^.;]{25,150})[.;]")
_LEAST_USES = 50
"""Of a word in the texts: one that a small model may have met."""
_STEM_CHARS = 4
_LINE_CHARS = range(20, 160)
_LINES_BEFORE = 2


class Question(NamedTuple):
    """As a task of lm-evaluation-harness reads it."""

    question: str
    options: list[str]
    answer: int
    """Which of the options, from 0."""


def word_questions(texts: Sequence[str], *, count: int) -> list[Question]:
    """Which noun does a dictionary explain so? None of the words of an explanation has its stem.

    Args:
        texts: articles of GCIDE.

    Raises:
        ValueError: when the texts have too few.
    """
    uses = Counter(word for text in texts for word in re.findall(r"\b[a-z]+\b", text))
    found: dict[str, str] = {}
    for text in texts:
        for name, article in _NOUN.findall(text):
            word = name.lower()
            explained = _EXPLANATION.match(" ".join(_ASIDE.sub(" ", article).split()))
            if explained is None or uses[word] < _LEAST_USES:
                continue
            if word[:_STEM_CHARS] not in explained[1].lower():
                found.setdefault(word, explained[1])
    asked = [(f"Meaning: {meaning}\nWord:", f" {word}") for word, meaning in found.items()]
    return _choices(asked, count=count, what="words")


def line_questions(texts: Iterable[str], *, count: int) -> list[Question]:
    """Which line follows these? The others follow elsewhere.

    Raises:
        ValueError: when the texts have too few lines.
    """
    asked = []
    for text in texts:
        lines = text.splitlines()
        for end in range(_LINES_BEFORE, len(lines), _LINES_BEFORE + 1):
            if len(lines[end]) in _LINE_CHARS:
                before = "\n".join(lines[end - _LINES_BEFORE : end]).rstrip()
                asked.append((before, f"\n{lines[end]}"))
    return _choices(asked, count=count, what="lines")


def _choices(asked: Sequence[tuple[str, str]], *, count: int, what: str) -> list[Question]:
    """The same for the same texts: a right answer, and those to other questions."""
    if len(asked) < max(count, _NUM_ANSWERS):
        raise ValueError(f"tasks: only {len(asked)} of {count} questions after {what} can be made")
    draws = random.Random(what)
    questions = []
    for text, right in draws.sample(asked, count):
        others = sorted({answer for _, answer in asked} - {right})
        options = [right, *draws.sample(others, _NUM_ANSWERS - 1)]
        draws.shuffle(options)
        questions.append(Question(text, options, options.index(right)))
    return questions
