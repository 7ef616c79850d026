"""How numbers and bounds are spelled in reports; a dash stands for what is not known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

UNKNOWN = "–"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with few digits."""
    return UNKNOWN if value is None or value != value else f"{value:.{digits}g}"


def duration(ms: float | None) -> str:
    """Return a time in ms, µs or s."""
    if ms is None:
        return UNKNOWN
    if abs(ms) < 0.1:
        return f"{ms * 1e3:.4g} µs"
    return f"{ms:.4g} ms" if abs(ms) < 1e4 else f"{ms / 1e3:.4g} s"


def size(count: float | None) -> str:
    """Return a number of bytes in B, kB or MB."""
    if count is None:
        return UNKNOWN
    if count < 1e3:
        return f"{count:.4g} B"
    return f"{count / 1e3:.4g} kB" if count < 1e6 else f"{count / 1e6:.4g} MB"


def megabytes(value: float | None) -> str:
    """Return megabytes as :func:`size` spells them."""
    return UNKNOWN if value is None else size(value * 1e6)


def percent(share: float | None) -> str:
    """Return a share as a percentage with one decimal, or two digits where it is small."""
    if share is None:
        return UNKNOWN
    return f"{100 * share:.2g} %" if 0 < abs(share) < 0.001 else f"{100 * share:.1f} %"


def energy(mj: float | None) -> str:
    """Return millijoules."""
    return UNKNOWN if mj is None else f"{mj:.4g} mJ"


def bops(value: float | None) -> str:
    """Return bit operations, with SI prefixes where they are many."""
    if value is None:
        return UNKNOWN
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.4g} {prefix}BOPs"
    return f"{value:.6g} BOPs"


def bits(value: float | None) -> str:
    """Return bits a weight."""
    return UNKNOWN if value is None else f"{value:.3g} bits"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How a field of :class:`~mpq_compile.types.Budget` is named, and its values spelled."""

    title: str
    spell: Callable[[float | None], str]


BOUNDS = {
    "latency_ms": Bound(title="Latency, median", spell=duration),
    "latency_p95_ms": Bound(title="Latency, 95th percentile", spell=duration),
    "size_mb": Bound(title="Stored size", spell=megabytes),
    "bops": Bound(title="Bit operations", spell=bops),
    "peak_activation_mb": Bound(title="Activations at one site, at most", spell=megabytes),
    "energy_mj": Bound(title="Energy of a call", spell=energy),
    "avg_bits": Bound(title="Average weight", spell=bits),
    "max_drop": Bound(title="Drop against float", spell=number),
    "max_loss": Bound(title="Loss by the metric", spell=number),
}
