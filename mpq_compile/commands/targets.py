"""``mpq targets``: the hardware profiles. Imports neither torch nor TVM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpq_compile.commands import options
from mpq_compile.commands.completion import profile_names
from mpq_compile.commands.default_group import DefaultGroup
from mpq_compile.commands.outcome import Outcome
from mpq_compile.cost.analytic import rate_gmacs
from mpq_compile.cost.profile import (
    Profile,
    Rule,
    list_profiles,
    load_profile,
    validate_profile,
)
from mpq_compile.errors import ProfileError
from mpq_compile.kernels.tier import host_tiers
from mpq_compile.types import Candidate


class _Group(DefaultGroup):
    default = "list"


app = typer.Typer(cls=_Group, help="Hardware profiles: list (also without a verb), show, validate.")

_REACHED = {
    "local": "times its kernels on the machine itself",
    "rpc": "times its kernels through TVM's RPC",
    "analytic": "computed by its equation",
    "class": "asks its class",
}


@app.command("list")
def list_targets(as_json: options.Json = False) -> Outcome:
    """List the shipped profiles, how each is reached, and which of them this machine is."""
    profiles = [load_profile(name) for name in list_profiles()]
    local = load_profile("local").name
    rows = [
        {
            "name": p.name,
            "kind": p.kind,
            "reached": p.reached,
            "here": here(p, local),
            "description": p.description,
        }
        for p in profiles
    ]

    def show(console: Console) -> None:
        table = Table("name", "kind", "reached", "this machine", "description")
        for row in rows:
            table.add_row(*row.values())
        console.print(table)

    return Outcome(data={"targets": rows, "local": local}, show=show)


def here(profile: Profile, local: str) -> str:
    """Say whether this machine is a target: the one it is, one it can act as, or neither."""
    if not profile.runs_networks:
        return "plans for it"
    if profile.reached == "rpc":
        return "no"
    if profile.name == local:
        return "yes"
    tiers = [tier.name for tier in host_tiers() if tier.name in profile.tiers]
    return f"with MPQ_TIER={tiers[0]}" if tiers else "no"


@app.command("show")
def show_target(
    name: Annotated[
        str,
        typer.Argument(
            help="local, a profile's name, or a YAML file.",
            show_default=False,
            autocompletion=profile_names,
        ),
    ],
    as_json: options.Json = False,
) -> Outcome:
    """Show what a profile says: operators, candidates, constraints, figures and their sources."""
    profile = load_profile(name)
    facts = {"here": here(profile, load_profile("local").name), "rates_gmacs": rates(profile)}
    return Outcome(
        data={**asdict(profile), **facts},
        show=lambda console: _show(console, profile, str(facts["here"])),
    )


def rates(profile: Profile) -> dict[str, float]:
    """Return the rate of each candidate that some operator supports, in 10⁹ MAC/s."""
    if profile.analytic is None:
        return {}
    rules = [rule for rules in profile.operators.values() for rule in rules]
    names = dict.fromkeys(name for rule in rules for name in rule.candidates)
    return {name: rate_gmacs(profile.analytic, Candidate.parse(name)) for name in names}


def _show(console: Console, profile: Profile, machine: str) -> None:
    console.print(Text(profile.name, "bold"), "–", profile.description)
    for name, value in _facts(profile, machine):
        console.print(f"{name + ':':<14}{value}")
    table = Table("operator", "candidates", "where")
    for operator, rules in profile.operators.items():
        for number, rule in enumerate(rules):
            names = ", ".join(rule.candidates)
            table.add_row("" if number else operator, names, _constraints(rule))
    console.print(table)
    if profile.sources:
        console.print("sources of the figures:")
        for key, text in profile.sources.items():
            console.print(f"  {key}: {text.strip()}")


def _facts(profile: Profile, machine: str) -> Iterator[tuple[str, str]]:
    """Yield names and texts of what is known, without what is not."""
    yield "kind", profile.kind
    yield "reached", f"{profile.reached}: {_REACHED[profile.reached]}"
    yield "this machine", machine
    yield "file", profile.source
    if profile.device:
        yield "class", profile.device
    if profile.rpc_key:
        yield "rpc key", profile.rpc_key
    if profile.target:
        yield "TVM target", ", ".join(f"{k}={_listed(v)}" for k, v in profile.target.items())
    if profile.tiers:
        yield "tiers", ", ".join(profile.tiers)
    if profile.isa_flags:
        yield "CPU flags", ", ".join(profile.isa_flags)
    if profile.runs_networks:
        yield "threads", str(profile.threads or "all that the process may use")
    yield "memory", _memory(profile)
    yield "energy", _energy(profile)
    yield from _equation(profile)
    if profile.overhead_us:
        yield "overhead", f"{profile.overhead_us:g} µs a network"
    yield "defaults", ", ".join(profile.defaults)


def _listed(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _memory(profile: Profile) -> str:
    known = {k: v for k, v in asdict(profile.memory).items() if v is not None}
    sizes = [f"{key.removesuffix('_bytes').upper()} {_bytes(v)}" for key, v in known.items()]
    if not sizes:
        return "differs between devices of this profile" if profile.runs_networks else "not given"
    return ", ".join(sizes)


def _bytes(size: int) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << power:
            return f"{size / (1 << power):g} {unit}"
    return f"{size} bytes"


def _energy(profile: Profile) -> str:
    energy = profile.energy
    if energy is None:
        return "not known: no energy budgets"
    return (
        f"{energy.pj_per_mac_bit:g} pJ for a product of two bits, {energy.pj_per_byte:g} pJ a byte"
        f" of main memory, {energy.static_mw:g} mW at all times"
    )


def _equation(profile: Profile) -> Iterator[tuple[str, str]]:
    """Yield the parameters of the roofline, rates by the default candidates."""
    analytic = profile.analytic
    if analytic is None:
        return
    found = rates(profile)
    shown = ", ".join(f"{name} {found[name]:g}" for name in profile.defaults)
    yield "rates", f"{shown} GMAC/s"
    if analytic.array is not None:
        rows, columns = analytic.array.rows, analytic.array.columns
        yield "array", f"{rows} rows (reduction) × {columns} columns (output channels)"
    if analytic.efficiency:
        shares = ", ".join(f"{name} {share:g}" for name, share in analytic.efficiency.items())
        yield "efficiency", shares
    onchip = analytic.onchip_bytes
    yield "on chip", "as much as is needed" if onchip is None else _bytes(onchip)
    yield "bandwidth", f"{analytic.bandwidth_gbs:g} GB/s to the main memory"
    yield "launch", f"{analytic.launch_us:g} µs a layer"


def _constraints(rule: Rule) -> str:
    """Say what a site must be like for a rule."""
    parts = []
    if rule.channel_multiple > 1:
        parts.append(f"channels in and out are multiples of {rule.channel_multiple}")
    if rule.min_rows > 1:
        parts.append(f"rows ≥ {rule.min_rows}")
    if rule.max_rows is not None:
        parts.append(f"rows ≤ {rule.max_rows}")
    if any(Candidate.parse(name).group_size for name in rule.candidates):
        parts.append("the group divides the input features")
    return ", ".join(parts) or "everywhere"


@app.command("validate")
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML file.", show_default=False)],
    as_json: options.Json = False,
) -> Outcome:
    """Check a profile's file: all that is wrong, line by line. Exit code 1 where anything is.

    The class that an accelerator's profile names is imported, which runs its file's code.
    """
    if not file.is_file():
        raise ProfileError(
            "no such profile file",
            where=str(file),
            expected="a YAML file",
            found="a folder" if file.is_dir() else "nothing",
            remedy="correct the path",
        )
    found = validate_profile(file) or _class_problems(file)
    data = {"valid": not found, "file": file, "problems": [error.to_json() for error in found]}
    return Outcome(
        data=data,
        show=lambda console: _show_problems(console, file, found),
        exit_code=1 if found else 0,
    )


def _class_problems(file: Path) -> list[ProfileError]:
    """Return what is wrong with the class of a profile that is valid otherwise."""
    profile = load_profile(file)
    if profile.device is None:
        return []
    from mpq_compile.cost.accelerator_class import load_accelerator

    try:
        load_accelerator(profile)
    except ProfileError as error:
        return [error]
    return []


def _show_problems(console: Console, file: Path, found: Sequence[ProfileError]) -> None:
    for error in found:
        console.print(str(error))
    console.print(f"{file}: {_count(len(found)) if found else 'valid'}")


def _count(problems: int) -> str:
    return "1 problem" if problems == 1 else f"{problems} problems"
