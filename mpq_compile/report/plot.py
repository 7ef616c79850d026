"""A static picture of a plan: bits, loss and cost of every site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch

from mpq_compile.types import Candidate, Plan

_PALETTE = plt.get_cmap("viridis")


def save_plan_picture(plan: Plan, path: str | Path) -> Path:
    """Draw weight bits, latency and size of each site to ``path`` (png, svg or pdf).

    The chosen candidate is a solid bar; what the other candidates would cost is a thin mark.
    """
    rows = [dict(row) for row in plan.table]
    sites = list(dict.fromkeys(row["site"] for row in rows)) or list(plan.assignment)
    colors = _colors(sorted(set(plan.assignment.values())))
    height = max(4.5, 0.28 * len(sites) + 1.6)
    figure, axes = plt.subplots(1, 3, figsize=(13, height), sharey=True)
    bits = [Candidate.parse(plan.assignment[site]).weight_bits for site in sites]
    tints = [colors[plan.assignment[site]] for site in sites]
    axes[0].barh(range(len(sites)), bits, color=tints)
    axes[0].set_xlabel("weight bits")
    _costs(axes[1], sites, rows, "latency_us", 1.0, tints, "latency, µs (predicted)")
    _costs(axes[2], sites, rows, "size_bytes", 1e-3, tints, "stored size, kB")
    axes[0].set_yticks(range(len(sites)), [site.split(":")[0] for site in sites], fontsize=8)
    axes[0].invert_yaxis()
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    figure.suptitle(_title(plan), x=0.01, ha="left", fontsize=10)
    figure.legend(handles=handles, loc="lower right", ncol=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0.4 / height, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return Path(path)


def _colors(names: Sequence[str]) -> dict[str, Any]:
    ordered = sorted(names, key=lambda name: Candidate.parse(name).weight_bits)
    return {name: _PALETTE((i + 0.5) / len(ordered)) for i, name in enumerate(ordered)}


def _costs(
    axis: Any,
    sites: Sequence[str],
    rows: Sequence[dict[str, Any]],
    field: str,
    factor: float,
    tints: Sequence[Any],
    label: str,
) -> None:
    place = {site: index for index, site in enumerate(sites)}
    chosen = {row["site"]: row[field] * factor for row in rows if row["chosen"]}
    axis.barh(range(len(sites)), [chosen.get(site, 0.0) for site in sites], color=tints)
    others = [row for row in rows if not row["chosen"]]
    axis.scatter(
        [row[field] * factor for row in others],
        [place[row["site"]] for row in others],
        marker="|",
        s=60,
        color="0.45",
        linewidths=1,
    )
    axis.set_xlabel(label)
    axis.grid(axis="x", alpha=0.3)


def _title(plan: Plan) -> str:
    predicted = plan.predicted
    latency = "" if predicted.latency_ms is None else f", {predicted.latency_ms:.3f} ms"
    budget = ", ".join(f"{name} ≤ {value:.4g}" for name, value in plan.budget.items()) or "none"
    return (
        f"{plan.target}: {predicted.size_bytes / 1e3:.1f} kB{latency}, "
        f"{predicted.avg_bits:.2f} bits on average (budget: {budget}; marks: other candidates)"
    )
