"""Varied English sentences from a small grammar: questions, statements, reports, instructions.

Calibration and evaluation draw other words for the same slots, so that no noun, verb or place of
one stands in the other; only function words and templates are shared.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

# Two halves of a vocabulary: the first for calibration, the second for evaluation.
_WORDS: Mapping[str, tuple[str, str]] = {
    "person": (
        "the engineer|my neighbour|a retired teacher|the nurse|our manager|the young violinist"
        "|a taxi driver|the goalkeeper|an economist|the librarian|her brother|the mayor",
        "the surgeon|my grandmother|a marine biologist|the pilot|our accountant|the head chef"
        "|a bus conductor|the striker|a historian|the postman|his cousin|the prime minister",
    ),
    "thing": (
        "the broken bicycle|a bowl of soup|the annual report|an old piano|the solar panels"
        "|a letter from the bank|the garden fence|three boxes of books|the new software"
        "|a winter coat|the kitchen sink|a map of the city",
        "the flooded basement|a loaf of bread|the quarterly figures|an antique clock"
        "|the wind turbines|a parcel from abroad|the roof tiles|several paintings"
        "|the latest update|a pair of boots|the washing machine|a photograph of the lake",
    ),
    "did": (
        "repaired|forgot about|paid for|complained about|carefully examined|gave away|bought"
        "|described|insured|painted",
        "inspected|lost|argued over|waited for|reluctantly sold|borrowed|ordered|photographed"
        "|returned|wrote about",
    ),
    "place": (
        "in Lisbon|at the railway station|near the river|in the laboratory|on the second floor"
        "|at the market|behind the school|in northern Canada",
        "in Kyoto|at the airport|beside the harbour|in the courtroom|on the top shelf"
        "|at the museum|outside the hospital|in the Sahara desert",
    ),
    "time": (
        "last Tuesday|before sunrise|during the holidays|in 1987|for three weeks|every morning",
        "yesterday evening|after midnight|during the strike|in 2015|for several months"
        "|once a year",
    ),
    "topic": (
        "machine translation|the French Revolution|baking sourdough|interest rates"
        "|knee injuries|black holes|beekeeping|copyright law|train timetables",
        "speech recognition|the Roman Empire|brewing coffee|exchange rates|heart disease"
        "|coral reefs|chess openings|immigration policy|electric cars",
    ),
    "quality": (
        "surprisingly cheap|hard to explain|dangerous|rather boring|worth every penny|too noisy",
        "remarkably accurate|easy to misunderstand|harmless|quite exciting|a waste of money"
        "|far too slow",
    ),
    "number": ("two|forty|nearly a hundred|seventeen|1,250", "five|sixty|over a thousand|eleven"),
}  # fmt: skip

_TEMPLATES = (
    "{person} {did} {thing} {time}",
    "{person} {did} {thing} {place}.",
    "How do I learn more about {topic}?",
    "What is the difference between {topic} and {topic}?",
    "{topic} is {quality}, according to {person}.",
    "{time}, {person} gave a talk about {topic} {place}, and {number} people came.",
    "Please tell {person} that {thing} is {quality}.",
    "Why was {thing} {place} so {quality}?",
    "I never thought that {topic} could be {quality}",
    "Breaking news: {number} people were injured {place} {time}, the police said.",
    "Although {person} {did} {thing}, {person} still believes that it is {quality}; "
    "nobody {place} has asked for {number} of them.",
    "A short introduction to {topic} for people who know nothing about {topic}",
    "To fix {thing}, switch it off, wait for {number} minutes and call {person}.",
    "{number} reasons why {topic} will be {quality} in the future",
    "The review says: \"{thing} arrived {time}. It was {quality}, so {person} sent it back, "
    "asked for a refund and {did} another one {place}.\"",
    "ok thanks, see you {place} {time}!",
)  # fmt: skip


def sentences(count: int, *, evaluation: bool, seed: int = 0) -> list[str]:
    """Return ``count`` different sentences of one half of the vocabulary."""
    draw = random.Random(f"{seed}/{evaluation}")
    slots = {name: halves[evaluation].split("|") for name, halves in _WORDS.items()}
    made: dict[str, None] = {}
    while len(made) < count:
        made[_filled(draw.choice(_TEMPLATES), slots, draw)] = None
    return list(made)


def _filled(template: str, slots: Mapping[str, Sequence[str]], draw: random.Random) -> str:
    """Fill each slot with a word of its own."""
    parts = template.split("{")
    text = parts[0]
    for part in parts[1:]:
        name, _, rest = part.partition("}")
        text += draw.choice(slots[name]) + rest
    return text[0].upper() + text[1:]
