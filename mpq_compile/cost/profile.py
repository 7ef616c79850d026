"""Hardware profiles: what a target is, what it supports and what is known of its cost."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mpq_compile.cost.profile_file import PROFILE_DIR, read_document
from mpq_compile.cost.profile_rules import expanded, problems
from mpq_compile.errors import MpqError, ProfileError, nearest
from mpq_compile.kernels.tier import detect_tier
from mpq_compile.types import Candidate, Site


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Candidates that an operator supports, and what a site must be like for them.

    Args:
        candidates: Full names, group sizes included.
        channel_multiple: Divides both the input and the output channels.
        min_rows: Least number of output positions (batch × height × width, or batch × tokens).
        max_rows: Greatest number of output positions; None for no bound.
    """

    candidates: tuple[str, ...]
    channel_multiple: int = 1
    min_rows: int = 1
    max_rows: int | None = None

    def admits(self, candidate: Candidate, site: Site) -> bool:
        """Tell whether the rule lists the candidate and the site meets its constraints."""
        if candidate.name not in self.candidates:
            return False
        channels = in_channels(site)
        if channels % self.channel_multiple or site.out_channels % self.channel_multiple:
            return False
        if candidate.group_size and channels % candidate.group_size:
            return False
        rows = site_rows(site)
        return self.min_rows <= rows and (self.max_rows is None or rows <= self.max_rows)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Sizes in bytes; None where unknown. L1 and L2 are those of one core."""

    l1_bytes: int | None = None
    l2_bytes: int | None = None
    l3_bytes: int | None = None
    dram_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy of a 1-bit × 1-bit MAC in pJ, of a byte moved in pJ, and constant power in mW."""

    pj_per_mac_bit: float
    pj_per_byte: float
    static_mw: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RateFormula:
    """rate(w, a) = peak_gmacs / (ceil(w / weight_step) · ceil(a / activation_step)), 10⁹ MAC/s."""

    peak_gmacs: float
    weight_step: int = 1
    activation_step: int = 1


@dataclass(frozen=True, kw_only=True)
class Array:
    """A systolic array: ``rows`` take the reduction, ``columns`` the output channels."""

    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class Analytic:
    """Parameters of the roofline: exactly one of ``formula`` and ``table`` is given.

    Args:
        formula: Rate by bits.
        table: Rate in 10⁹ MAC/s by ``fp32``, ``bf16`` or ``w<b>a<b>``.
        array: Shape of the array whose full use gives the rate; None where every layer reaches it.
        efficiency: Share of the rate by operator; 1 where left out.
        bandwidth_gbs: Bandwidth to the main memory, 10⁹ byte/s.
        launch_us: Fixed cost of one operator, µs.
        onchip_bytes: On-chip memory; None for as much as is needed.
    """

    bandwidth_gbs: float
    launch_us: float
    formula: RateFormula | None = None
    table: Mapping[str, float] | None = None
    array: Array | None = None
    efficiency: Mapping[str, float]
    onchip_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One target. ``source`` is the file it was read from; ``target`` a TVM target as data.

    ``target`` belongs to the plainest tier of the profile; a build for this machine takes the
    tier that was detected instead. ``device`` names the class that times an accelerator,
    ``overhead_us`` is the fixed time of a network where none can be timed, and ``sources`` says
    where figures come from, by their keys with dots between.
    """

    name: str
    description: str
    kind: Literal["cpu", "analytic", "accelerator"]
    reached: Literal["local", "analytic", "rpc", "class"]
    source: str
    operators: Mapping[str, tuple[Rule, ...]]
    defaults: tuple[str, ...]
    rpc_key: str | None = None
    device: str | None = None
    overhead_us: float = 0.0
    target: Mapping[str, Any] | None = None
    tiers: tuple[str, ...] = ()
    isa_flags: tuple[str, ...] = ()
    threads: int | None = None
    memory: Memory = Memory()
    energy: Energy | None = None
    analytic: Analytic | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def runs_networks(self) -> bool:
        """True where whole networks run on the target and are timed there."""
        return self.kind == "cpu"

    def supports(self, site_op: str, depthwise: bool, candidate: Candidate, site: Site) -> bool:
        """Tell whether the target computes the site with the candidate."""
        rules = self.operators.get(operator_name(site_op, depthwise), ())
        return any(rule.admits(candidate, site) for rule in rules)

    def candidates_for(self, site: Site, requested: Sequence[str] | None = None) -> list[str]:
        """Return the requested candidates (the defaults for None) that the site can have.

        The order is that of the request, without repetition.

        Raises:
            PlanError: A requested name is not a candidate's.
            ProfileError: None of them is supported at this site.
        """
        asked = dict.fromkeys(self.defaults if requested is None else requested)
        parsed = [Candidate.parse(name) for name in asked]
        found = [c.name for c in parsed if self.supports(site.op, site.depthwise, c, site)]
        if not found:
            raise self._no_candidate(site, list(asked))
        return found

    def _no_candidate(self, site: Site, asked: list[str]) -> ProfileError:
        operator = operator_name(site.op, site.depthwise)
        if operator not in self.operators:
            return ProfileError(
                f"profile {self.name} runs no {operator}",
                where=site.id,
                expected=f"{operator} among its operators",
                found=", ".join(self.operators) or "none",
                remedy=f"add {operator} to the profile's operators, or choose another target",
            )
        listed = [name for rule in self.operators[operator] for name in rule.candidates]
        parsed = map(Candidate.parse, listed)
        able = [c.name for c in parsed if self.supports(site.op, site.depthwise, c, site)]
        return ProfileError(
            f"profile {self.name} supports none of the requested candidates for this {operator}",
            where=site.id,
            expected=", ".join(able) or "nothing: this profile cannot run the site",
            found=", ".join(asked) or "no candidate",
            remedy="request one of those expected, or choose another target",
        )


def operator_name(site_op: str, depthwise: bool) -> str:
    """Return the operator's key in a profile."""
    return "depthwise_conv2d" if depthwise else site_op


def in_channels(site: Site) -> int:
    """Return the number of input channels (features), those of all groups together."""
    if site.op == "conv_transpose2d":
        return site.weight_shape[0]
    return site.weight_shape[1] * site.groups


def site_rows(site: Site) -> int:
    """Return the number of output positions: elements of the output per output channel."""
    if site.op == "embedding":
        return math.prod(site.input_shape)
    count = 1
    for size in site.output_shape:
        count *= size
    return count // site.out_channels


def list_profiles() -> list[str]:
    """Return the names of the shipped profiles, sorted."""
    return sorted(path.stem for path in PROFILE_DIR.glob("*.yaml"))


def load_profile(name_or_path: str | os.PathLike[str]) -> Profile:
    """Load a shipped profile by name, ``local`` for this machine's, or a YAML file by path.

    What has a folder or a ``.yaml``/``.yml`` suffix is a path.

    Raises:
        ProfileError: The name is unknown, or the file is malformed or violates the schema.
        DeviceError: ``local`` with an ``MPQ_TIER`` that cannot run here.
    """
    if name_or_path == "local":
        return profile_of_tier(detect_tier().name)
    if _is_path(name_or_path):
        return _load_file(Path(name_or_path))
    name = str(name_or_path)
    known = list_profiles()
    if name not in known:
        raise ProfileError(
            f"unknown profile {name!r}",
            expected="local, a shipped profile, or the path of a YAML file",
            found=repr(name),
            remedy=nearest(name, [*known, "local"]),
        )
    return _load_file(PROFILE_DIR / f"{name}.yaml")


def validate_profile(path: str | os.PathLike[str]) -> list[ProfileError]:
    """Return every problem of a profile's file as an error that was not raised."""
    try:
        return problems(read_document(Path(path)))
    except ProfileError as error:
        return [error]


def _is_path(name_or_path: str | os.PathLike[str]) -> bool:
    if not isinstance(name_or_path, str):
        return True
    path = Path(name_or_path)
    return path.name != name_or_path or path.suffix in (".yaml", ".yml")


def runs_networks(target: str) -> bool:
    """Tell whether networks can be timed on a target; also where its profile is elsewhere."""
    try:
        return load_profile(target).runs_networks
    except MpqError:
        return True


def profile_of_tier(tier: str) -> Profile:
    """Return the shipped profile that has a tier; raise ``ProfileError`` where none has."""
    for name in list_profiles():
        profile = load_profile(name)
        if tier in profile.tiers:
            return profile
    raise ProfileError(
        f"no profile has the tier {tier!r}",
        expected=f"a file in {PROFILE_DIR} with {tier} under tiers",
        found=", ".join(list_profiles()),
        remedy="name a profile, or write one for this tier",
    )


def _load_file(path: Path) -> Profile:
    document = read_document(path)
    found = problems(document)
    if found:
        raise found[0]
    return _from_data(document.data, str(path))


def _from_data(data: Mapping[str, Any], source: str) -> Profile:
    """Build a profile from data that has passed all checks."""
    operators = {name: tuple(map(_rule, rules)) for name, rules in data["operators"].items()}
    energy, analytic = data.get("energy"), data.get("analytic")
    return Profile(
        name=data["name"],
        description=data["description"].strip(),
        kind=data["kind"],
        reached=data["reached"],
        source=source,
        operators=operators,
        defaults=tuple(data["defaults"]),
        rpc_key=data.get("rpc_key"),
        device=data.get("device"),
        overhead_us=data.get("overhead_us", 0.0),
        target=data.get("target"),
        tiers=tuple(data.get("tiers", ())),
        isa_flags=tuple(data.get("isa_flags", ())),
        threads=data.get("threads"),
        memory=Memory(**data.get("memory", {})),
        energy=Energy(**energy) if energy else None,
        analytic=_analytic(analytic) if analytic else None,
        sources=data.get("sources", {}),
    )


def _rule(rule: Mapping[str, Any]) -> Rule:
    constraints = {k: v for k, v in rule.items() if k not in ("candidates", "group_sizes")}
    return Rule(candidates=expanded(rule), **constraints)


def _analytic(data: Mapping[str, Any]) -> Analytic:
    formula, array = data["rate"].get("formula"), data.get("array")
    return Analytic(
        bandwidth_gbs=data["bandwidth_gbs"],
        launch_us=data["launch_us"],
        formula=RateFormula(**formula) if formula else None,
        table=data["rate"].get("table"),
        array=Array(**array) if array else None,
        efficiency=data.get("efficiency", {}),
        onchip_bytes=data.get("onchip_bytes"),
    )
