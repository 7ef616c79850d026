"""``mpq targets``: the hardware profiles. Imports neither torch nor TVM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpq_compile.commands import options
from mpq_compile.commands.default_group import DefaultGroup
from mpq_compile.commands.outcome import Outcome
from mpq_compile.cost.profile import Profile, list_profiles, load_profile, validate_profile
from mpq_compile.errors import ProfileError


class _Group(DefaultGroup):
    default = "list"


app = typer.Typer(cls=_Group, help="Hardware profiles: list (also without a verb), show, validate.")


@app.command("list")
def list_targets(as_json: options.Json = False) -> Outcome:
    """List the shipped profiles, and the one that fits this machine."""
    profiles = [load_profile(name) for name in list_profiles()]
    local = load_profile("local").name

    def show(console: Console) -> None:
        table = Table("name", "kind", "reached", "description")
        for profile in profiles:
            name = f"{profile.name} (local)" if profile.name == local else profile.name
            table.add_row(name, profile.kind, profile.reached, profile.description)
        console.print(table)

    rows = [
        {"name": p.name, "kind": p.kind, "reached": p.reached, "description": p.description}
        for p in profiles
    ]
    return Outcome(data={"targets": rows, "local": local}, show=show)


@app.command("show")
def show_target(
    name: Annotated[
        str, typer.Argument(help="local, a profile's name, or a YAML file.", show_default=False)
    ],
    as_json: options.Json = False,
) -> Outcome:
    """Show what a profile says."""
    profile = load_profile(name)
    return Outcome(data=asdict(profile), show=lambda console: _show(console, profile))


def _show(console: Console, profile: Profile) -> None:
    console.print(Text(profile.name, "bold"), "–", profile.description)
    rows = {
        "kind": f"{profile.kind}, reached: {profile.reached}",
        "file": profile.source,
        "tiers": ", ".join(profile.tiers) or "none",
        "defaults": ", ".join(profile.defaults),
    }
    for name, value in rows.items():
        console.print(f"{name + ':':<10}{value}")
    table = Table("operator", "candidates")
    for operator, rules in profile.operators.items():
        names = dict.fromkeys(name for rule in rules for name in rule.candidates)
        table.add_row(operator, ", ".join(names))
    console.print(table)


@app.command("validate")
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML file.", show_default=False)],
    as_json: options.Json = False,
) -> Outcome:
    """Check a profile's file: all that is wrong, line by line. Exit code 1 where anything is."""
    if not file.is_file():
        raise ProfileError(
            "no such profile file",
            where=str(file),
            expected="a YAML file",
            found="a folder" if file.is_dir() else "nothing",
            remedy="correct the path",
        )
    found = validate_profile(file)
    data = {"valid": not found, "file": file, "problems": [error.to_json() for error in found]}
    return Outcome(
        data=data,
        show=lambda console: _show_problems(console, file, found),
        exit_code=1 if found else 0,
    )


def _show_problems(console: Console, file: Path, found: Sequence[ProfileError]) -> None:
    for error in found:
        console.print(str(error))
    console.print(f"{file}: {f'{len(found)} problems' if found else 'valid'}")
