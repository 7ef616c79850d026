"""Black boxes with known answers, separable and not."""

from __future__ import annotations

import numpy as np

from mpq_compile.solve import BlackBox


def water_filling(seed: int, sources: int = 8, total: int = 24) -> tuple[BlackBox, float]:
    """Return Σ a_i 4^(−b_i) under Σ b_i ≤ total, and its optimum by one bit after the other."""
    variances = np.random.default_rng(seed).lognormal(0.0, 2.0, sources)
    best = np.zeros(sources)
    for _ in range(total):
        best[np.argmax(variances * 4.0**-best)] += 1
    box = BlackBox.from_bits(
        {f"s{i}": range(13) for i in range(sources)},
        lambda bits: (variances * 4.0**-bits).sum(axis=1),
        budget={"bits": total},
    )
    return box, float((variances * 4.0**-best).sum())


def interacting(seed: int, variables: int = 7, levels: int = 4, neighbours: int = 1) -> BlackBox:
    """Return a sum of random terms of each variable and ``neighbours`` others, priced unevenly."""
    rng = np.random.default_rng(seed)
    others = [
        rng.choice([j for j in range(variables) if j != i], neighbours, replace=False)
        for i in range(variables)
    ]
    joint = rng.uniform(0, 1, (variables, *[levels] * (neighbours + 1)))
    alone = np.sort(rng.uniform(0, 2, (variables, levels)), axis=1)[:, ::-1]
    price = np.sort(rng.uniform(1, 4, (variables, levels)), axis=1)

    def loss(bits: np.ndarray) -> np.ndarray:
        terms = [
            joint[(i, bits[:, i], *(bits[:, j] for j in others[i]))] + alone[i, bits[:, i]]
            for i in range(variables)
        ]
        return np.sum(terms, axis=0)

    limit = price[:, 0].sum() + 0.5 * (price[:, -1] - price[:, 0]).sum()
    return BlackBox.from_bits(
        {f"v{i}": range(levels) for i in range(variables)},
        loss,
        budget={"price": float(limit)},
        costs={"price": price.tolist()},
    )
