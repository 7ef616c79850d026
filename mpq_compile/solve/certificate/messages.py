"""Read the messages of a certificate: how each pair's terms are split between it and its ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpq_compile.solve.certificate.terms import Floats, Terms


def read_messages(
    terms: Terms, data: Any
) -> tuple[Mapping[tuple[int, int], Floats] | None, list[str]]:
    """Return the messages by (from, to), one number for each label of ``to``, and what is wrong.

    ``data`` is a list of ``[a, b, to_a, to_b]``: the groups' numbers, a < b, and a number for
    each of their candidates. Any numbers give a bound; what is left out counts as zero.
    """
    if data is None:
        return None, []
    found = {(a, b): np.zeros(int(terms.labels[b])) for a, b in terms.edges}
    for entry in data:
        try:
            a, b, to_a, to_b = entry
            for source, goal, values in ((b, a, to_a), (a, b, to_b)):
                there = np.isfinite(terms.loss[goal])
                numbers = np.asarray(values, dtype=float)[there]
                first = np.unique(terms.label[goal][there], return_index=True)[1]
                found[source, goal] += numbers[first]
        except (TypeError, ValueError, IndexError, KeyError):
            return None, [f"a message is not [a, b, numbers for a, numbers for b]: {entry!r:.80}"]
    if not all(np.isfinite(values).all() for values in found.values()):
        return None, ["a message is not finite"]
    return found, []
