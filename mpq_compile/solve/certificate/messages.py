"""The bound that messages prove, where pairs join too many groups to be eliminated.

Groups are put together in blocks; a block's label is a candidate for each of its groups, the last
group's fastest. Whatever the messages m are, the minimum over all assignments is at least

    Σ_k min_x [θ_k(x) + Σ_l m_kl→k(x)] + Σ_kl min_xy [θ_kl(x, y) − m_kl→k(x) − m_kl→l(y)] − λ·limit

where θ = loss + λ·cost, θ_k of a block with the pairs within it and θ_kl of the pairs between two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpq_compile.solve.certificate.bound import singles, weighed
from mpq_compile.solve.certificate.terms import Floats, Ints, Terms

# Labels of one block, and entries of a table between two, that are looked at.
LABELS, ENTRIES = 2**12, 2**20


def least_by_messages(
    terms: Terms, certificate: Mapping[str, Any], price: Floats
) -> tuple[float | None, list[str]]:
    """Return what the messages prove, None where there are none, and what is wrong with them.

    ``certificate`` holds ``blocks``, lists of the groups' numbers, and ``messages``, lists of
    ``[k, l, to k, to l]`` with k < l and a number for each label; those left out are zero.
    """
    if "blocks" not in certificate:
        return None, []
    members = [tuple(map(int, block)) for block in certificate["blocks"]]
    if sorted(g for block in members for g in block) != list(range(len(terms.loss))):
        return None, ["the blocks of the certificate are not a partition of the groups"]
    counts = np.isfinite(terms.loss).sum(axis=1).tolist()
    sizes = [math.prod(counts[g] for g in block) for block in members]
    if max(sizes) > LABELS or max(sizes) ** 2 > ENTRIES:
        return None, []
    labels = [np.indices([counts[g] for g in block]).reshape(len(block), -1) for block in members]
    alone = _alone(terms, members, labels, price)
    rest = 0.0
    sent = _sent(certificate.get("messages", ()), sizes)
    if sent is None:
        return None, ["a message is not [k, l, numbers for k's labels, numbers for l's]"]
    for k, block in enumerate(members):
        for m in range(k + 1, len(members)):
            joint = _joint(terms, (block, members[m]), (labels[k], labels[m]), price)
            to_k, to_m = sent.get((k, m), (0.0, 0.0))
            if joint is None and (k, m) not in sent:
                continue
            between = np.zeros((sizes[k], sizes[m])) if joint is None else joint
            rest += float((between - np.reshape(to_k, (-1, 1)) - to_m).min())
            alone[k] = alone[k] + to_k
            alone[m] = alone[m] + to_m
    value = math.fsum(float(a.min()) for a in alone) + rest - float(price @ terms.limit)
    return value, []


def _sent(data: Any, sizes: list[int]) -> dict[tuple[int, int], tuple[Floats, Floats]] | None:
    sent: dict[tuple[int, int], tuple[Floats, Floats]] = {}
    for entry in data:
        try:
            k, m, *numbers = entry
            to_k, to_m = (np.asarray(values, dtype=float) for values in numbers)
            right = 0 <= k < m and to_k.shape == (sizes[k],) and to_m.shape == (sizes[m],)
        except (TypeError, ValueError, IndexError):
            return None
        if not (right and np.isfinite(to_k).all() and np.isfinite(to_m).all()):
            return None
        sent[k, m] = to_k, to_m
    return sent


def _alone(
    terms: Terms, members: list[tuple[int, ...]], labels: list[Ints], price: Floats
) -> list[Floats]:
    """Return loss + price·cost of each block's labels, the pairs within it included."""
    single = singles(terms, 1.0, price)
    values = []
    for block, chosen in zip(members, labels, strict=True):
        value = sum(single[g, c] for g, c in zip(block, chosen, strict=True))
        for i, a in enumerate(block):
            for j, b in enumerate(block):
                if a < b and (a, b) in terms.edges:
                    edge = weighed(terms.edges[a, b], 1.0, price)
                    value = value + edge[terms.label[a, chosen[i]], terms.label[b, chosen[j]]]
        values.append(np.asarray(value))
    return values


def _joint(
    terms: Terms,
    members: tuple[tuple[int, ...], tuple[int, ...]],
    labels: tuple[Ints, Ints],
    price: Floats,
) -> Floats | None:
    """Return loss + price·cost of the pairs between two blocks, None where there are none."""
    total: Floats | None = None
    for i, a in enumerate(members[0]):
        for j, b in enumerate(members[1]):
            if (a, b) in terms.edges:
                edge = weighed(terms.edges[a, b], 1.0, price)
                rows, columns = terms.label[a, labels[0][i]], terms.label[b, labels[1][j]]
                part = edge[np.ix_(rows, columns)]
                total = part if total is None else total + part
    return total
