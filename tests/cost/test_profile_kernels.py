"""What a CPU's profile promises, the kernels of each of its tiers can be generated for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mpq_compile.cost.profile import Profile, list_profiles, load_profile, operator_name
from mpq_compile.errors import LoweringError
from mpq_compile.kernels.tier import TIERS, Tier
from mpq_compile.lower.emit import generator_of
from mpq_compile.lower.workloads import embedding_workload, site_workload
from mpq_compile.types import Candidate, Site

CPU_PROFILES = [name for name in list_profiles() if load_profile(name).kind == "cpu"]
# (stride, padding, dilation, groups, input dilation) of the sites of conftest.py.
GEOMETRY = {
    "conv2d": ((1, 1), (1, 1, 1, 1), (1, 1), 1, (1, 1)),
    "depthwise_conv2d": ((1, 1), (1, 1, 1, 1), (1, 1), 32, (1, 1)),
    "conv_transpose2d": ((1, 1), (1, 1, 1, 1), (1, 1), 1, (2, 2)),
    "linear": (),
    "embedding": (),
}

EMBEDDING = Site(
    id="tokens:embedding#0",
    op="embedding",
    weight_shape=(50, 128),
    input_shape=(1, 7),
    output_shape=(1, 7, 128),
    macs=0,
    group="tokens",
)


@pytest.fixture
def sites(conv: Site, depthwise: Site, transposed: Site, linear: Site) -> dict[str, Site]:
    every = (conv, depthwise, transposed, linear, EMBEDDING)
    found = {operator_name(s.op, s.depthwise): s for s in every}
    assert set(found) == set(GEOMETRY)
    return found


def promised(profile: Profile, tier: Tier, sites: dict[str, Site]) -> Iterator[tuple[str, Any]]:
    """Yield each kernel that the profile's rules ask for, once."""
    seen = set()
    for operator, rules in profile.operators.items():
        for name in dict.fromkeys(name for rule in rules for name in rule.candidates):
            site, candidate = sites[operator], Candidate.parse(name)
            assert profile.supports(site.op, site.depthwise, candidate, site), (operator, name)
            workload = (
                embedding_workload(site, candidate, "int64")
                if operator == "embedding"
                else site_workload(site, candidate, tier, GEOMETRY[operator], False, False)
            )
            if workload.key not in seen:
                seen.add(workload.key)
                yield name, workload


@pytest.mark.parametrize("tier", TIERS)
def test_every_promised_kernel_is_generated(tier: str, sites: dict[str, Site]) -> None:
    (profile,) = [p for p in map(load_profile, CPU_PROFILES) if tier in p.tiers]
    assert set(profile.operators) == set(GEOMETRY)
    workloads = dict(promised(profile, TIERS[tier], sites))
    assert len(workloads) > 20
    for name, workload in workloads.items():
        assert generator_of(workload)(workload, TIERS[tier], 2) is not None, name


@pytest.mark.parametrize("name", CPU_PROFILES)
def test_what_no_kernel_computes_is_not_promised(name: str, linear: Site) -> None:
    """Scales by groups stand in kernels of integer weights; a group divides the features."""
    candidate = Candidate.parse("w4a16g48")
    assert not load_profile(name).supports("linear", False, candidate, linear)
    with pytest.raises(LoweringError, match="groups"):
        site_workload(linear, candidate, TIERS["generic"], (), False, False)
