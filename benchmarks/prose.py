"""Running English text that comes with every Python: the topics of its interactive help."""

from __future__ import annotations

import random
import re
from pydoc_data import topics

_SENTENCE_ENDS = re.compile(r"(?<=[.!?:;]) ")
# What is no prose: grammars, tables, code.
_PROSE = re.compile(r"[A-Z*\"][^=|_]*\b[a-z]+ [a-z]+ [a-z]+\b[^=|_]*")


def prose(seed: int = 0) -> list[str]:
    """Return the sentences of all topics, each once, in a random order."""
    paragraphs = "\n\n".join(topics.topics.values()).split("\n\n")
    found = [
        sentence
        for paragraph in paragraphs
        for sentence in _SENTENCE_ENDS.split(" ".join(paragraph.split()))
        if _PROSE.fullmatch(sentence)
    ]
    different = list(dict.fromkeys(found))
    random.Random(seed).shuffle(different)
    return different
