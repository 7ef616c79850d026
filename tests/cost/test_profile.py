"""Shipped profiles are valid and agree with the tiers; support follows the rules."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from mpq_compile.cost.profile import (
    Profile,
    Rule,
    list_profiles,
    load_profile,
    site_rows,
    validate_profile,
)
from mpq_compile.cost.profile_file import PROFILE_DIR, SCHEMA_PATH
from mpq_compile.errors import PlanError, ProfileError
from mpq_compile.kernels.tier import TIERS, detect_tier, host_tiers
from mpq_compile.types import Candidate, Site

CPU_PROFILES = [name for name in list_profiles() if load_profile(name).kind == "cpu"]
ANALYTIC_PROFILES = [name for name in list_profiles() if load_profile(name).kind == "analytic"]
ALL_WEIGHT_BITS = ["w8a8", "w7a8", "w6a8", "w5a8", "w4a8", "w3a8", "w2a8"]


def test_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(json.loads(SCHEMA_PATH.read_text()))


@pytest.mark.parametrize("name", list_profiles())
def test_shipped_profile_is_valid(name: str) -> None:
    assert validate_profile(PROFILE_DIR / f"{name}.yaml") == []
    profile = load_profile(name)
    assert profile.name == name
    json.dumps(dataclasses.asdict(profile))


@pytest.mark.parametrize("name", list_profiles())
def test_schema_is_enough_for_other_validators(name: str) -> None:
    data = yaml.safe_load((PROFILE_DIR / f"{name}.yaml").read_text())
    Draft202012Validator(json.loads(SCHEMA_PATH.read_text())).validate(data)


def test_every_tier_has_exactly_one_profile() -> None:
    tiers = [tier for name in list_profiles() for tier in load_profile(name).tiers]
    assert sorted(tiers) == sorted(TIERS)


@pytest.mark.parametrize("name", CPU_PROFILES)
def test_profile_agrees_with_its_plainest_tier(name: str) -> None:
    profile = load_profile(name)
    plainest = TIERS[profile.tiers[-1]]
    spec = plainest.target(threads=1)
    del spec["num-cores"]
    assert profile.target == spec
    assert frozenset(profile.isa_flags) == plainest.flags


def test_local_is_the_profile_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert detect_tier().name in load_profile("local").tiers
    for tier in host_tiers():
        monkeypatch.setenv("MPQ_TIER", tier.name)
        assert tier.name in load_profile("local").tiers


@pytest.mark.parametrize("name", CPU_PROFILES)
def test_cpu_candidates(name: str, conv: Site, depthwise: Site, transposed: Site) -> None:
    profile = load_profile(name)
    assert profile.defaults == ("fp32", "bf16", "w8a8", "w4a8")
    weight_only = [f"w{bits}a16" for bits in range(8, 1, -1)]
    wanted = ["fp32", "bf16", *ALL_WEIGHT_BITS, *weight_only]
    for site in (conv, depthwise, transposed):
        assert profile.candidates_for(site) == list(profile.defaults)
        assert profile.candidates_for(site, wanted) == wanted
        assert profile.candidates_for(site, ["w4a8d", "w4a8g32", "w8a8"]) == ["w8a8"]


def test_linear_has_weight_only_dynamic_and_groups(linear: Site) -> None:
    wanted = ["w8a16", "w3a16", "w8a8d", "w4a8d", "w4a8g64d"]
    wanted += ["w4a8g32", "w4a8g64", "w4a8g128", "w8a8g64", "w2a8g128", "w4a16g64"]
    assert load_profile("generic").candidates_for(linear, [*wanted, "w4a8g16"]) == wanted


def test_group_must_divide_the_features(linear: Site) -> None:
    narrow = dataclasses.replace(linear, weight_shape=(128, 96), input_shape=(4, 96))
    found = load_profile("generic").candidates_for(narrow, ["w4a8g32", "w4a8g64"])
    assert found == ["w4a8g32"]


def test_bit_serial_supports_every_pair(conv: Site, depthwise: Site) -> None:
    profile = load_profile("bit_serial")
    pairs = [f"w{w}a{a}" for w in range(2, 9) for a in range(2, 9)]
    for site in (conv, depthwise):
        assert profile.candidates_for(site, [*pairs, "fp32"]) == pairs


def test_a_profile_without_an_operator_says_which(conv: Site, depthwise: Site) -> None:
    whole = load_profile("bit_serial")
    profile = dataclasses.replace(whole, operators={"conv2d": whole.operators["conv2d"]})
    assert profile.candidates_for(conv, ["w8a8"]) == ["w8a8"]
    with pytest.raises(ProfileError, match="runs no depthwise_conv2d") as caught:
        profile.candidates_for(depthwise)
    assert (caught.value.where, caught.value.found) == (depthwise.id, "conv2d")
    assert "add depthwise_conv2d" in str(caught.value.remedy)
    # One that is listed, but not for such a site, is not to be added.
    odd = dataclasses.replace(conv, weight_shape=(63, 3, 3, 3), input_shape=(1, 3, 28, 28))
    strict = load_profile("systolic_npu")
    with pytest.raises(ProfileError, match="supports none") as caught:
        strict.candidates_for(odd, ["w4a4"])
    assert "add" not in str(caught.value.remedy)


def test_the_systolic_array_multiplies_three_pairs(conv: Site, depthwise: Site) -> None:
    profile = load_profile("systolic_npu")
    pairs = [f"w{w}a{a}" for w in range(2, 9) for a in range(2, 9)]
    for site in (conv, depthwise):
        assert profile.candidates_for(site, [*pairs, "fp32"]) == ["w4a4", "w4a8", "w8a8"]
    odd = dataclasses.replace(conv, weight_shape=(64, 3, 3, 3), input_shape=(1, 3, 28, 28))
    assert profile.candidates_for(odd) == ["w8a8"]  # two 4-bit codes share a byte


@pytest.mark.parametrize("name", ANALYTIC_PROFILES)
def test_every_figure_of_an_analytic_profile_has_a_source(name: str) -> None:
    data = yaml.safe_load((PROFILE_DIR / f"{name}.yaml").read_text())
    figures = [(part, key) for part in ("memory", "energy", "analytic") for key in data[part]]
    given = [(part, key) for part, key in figures if data[part][key] is not None]
    assert {f"{part}.{key}" for part, key in given} == set(data["sources"])


@pytest.mark.parametrize("name", CPU_PROFILES)
def test_figures_of_a_cpu_profile_have_a_source(name: str) -> None:
    data = yaml.safe_load((PROFILE_DIR / f"{name}.yaml").read_text())
    known = any(value is not None for value in data["memory"].values())
    assert ("memory" in data.get("sources", {})) == known


def test_requested_order_is_kept_and_repetition_dropped(conv: Site) -> None:
    profile = load_profile("generic")
    assert profile.candidates_for(conv, ["w4a8", "fp32", "w4a8"]) == ["w4a8", "fp32"]


def test_nothing_supported_says_what_is(depthwise: Site) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile("generic").candidates_for(depthwise, ["w4a8g64"])
    assert caught.value.where == "dw:conv2d#0"
    assert "depthwise_conv2d" in str(caught.value)
    assert "w8a8" in str(caught.value.expected)
    assert caught.value.found == "w4a8g64"


def test_malformed_candidate_is_refused(conv: Site) -> None:
    with pytest.raises(PlanError, match="w9a8"):
        load_profile("generic").candidates_for(conv, ["w9a8"])


def _with_rule(profile: Profile, operator: str, **constraints: int) -> Profile:
    rule = Rule(candidates=("w8a8",), **constraints)
    return dataclasses.replace(profile, operators={operator: (rule,)})


@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        ({}, True),
        ({"channel_multiple": 32}, True),
        ({"channel_multiple": 64}, False),  # 32 input channels
        ({"min_rows": 28 * 28}, True),
        ({"min_rows": 28 * 28 + 1}, False),
        ({"max_rows": 28 * 28}, True),
        ({"max_rows": 28 * 28 - 1}, False),
    ],
)
def test_constraints(conv: Site, constraints: dict[str, int], expected: bool) -> None:
    profile = _with_rule(load_profile("generic"), "conv2d", **constraints)
    candidate = Candidate.parse("w8a8")
    assert profile.supports("conv2d", False, candidate, conv) is expected
    assert profile.supports("linear", False, candidate, conv) is False
    assert profile.supports("conv2d", True, candidate, conv) is False


def test_channels_of_depthwise_and_transposed(depthwise: Site, transposed: Site) -> None:
    candidate = Candidate.parse("w8a8")
    for site, op in ((depthwise, "depthwise_conv2d"), (transposed, "conv_transpose2d")):
        most = 32 if op == "depthwise_conv2d" else 16
        for multiple, expected in ((most, True), (2 * most, False)):
            profile = _with_rule(load_profile("generic"), op, channel_multiple=multiple)
            assert profile.supports(site.op, site.depthwise, candidate, site) is expected


def test_rows(linear: Site, conv: Site, transposed: Site) -> None:
    assert [site_rows(site) for site in (linear, conv, transposed)] == [4, 784, 784]


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ProfileError, match="did you mean 'x86_64_vnni'"):
        load_profile("x86_64_vni")


def test_path_and_name_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((PROFILE_DIR / "generic.yaml").read_text())
    assert load_profile(path).source == str(path)
    assert load_profile(str(path)).name == "generic"
    with pytest.raises(ProfileError, match="no such profile file"):
        load_profile("absent.yaml")
