"""Which tiers a kernel test runs on."""

from __future__ import annotations

import pytest

from mpq_compile.kernels.tier import Tier, host_tiers


def distinct_tiers() -> list[Tier]:
    """Return this machine's tiers without those whose plain kernels a better tier has too.

    Tiers that differ in bf16 products or in prefetching alone have one TensorIR for int8, fp32
    and elementwise work. The random sweep runs every tier on everything.
    """
    best: dict[object, Tier] = {}
    for tier in host_tiers():
        best.setdefault((tier.lanes, tier.dot, tier.k_group, tier.registers), tier)
    return list(best.values())


def _named(tier: Tier) -> str:
    return tier.name


EVERY_TIER = pytest.mark.parametrize("tier", host_tiers(), ids=_named)
DISTINCT_TIERS = pytest.mark.parametrize("tier", distinct_tiers(), ids=_named)
