"""``mpq demo``: the whole job on real data, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpq_compile.commands import options
from mpq_compile.commands.outcome import Outcome
from mpq_compile.errors import ArtifactError


def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of what it writes.")
    ] = Path("mpq_demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Train less, on smaller layers.")] = False,
    as_json: options.Json = False,
) -> Outcome:
    """Train, plan, compile and measure networks on digits; print what was gained."""
    if output.exists() and not output.is_dir():
        raise ArtifactError(
            "the demo cannot write there",
            where=str(output),
            expected="a folder, or a name that is free",
            found="a file",
            remedy="choose another folder",
        )
    from mpq_compile.demo import run_demo

    result = run_demo(output, quick)
    return Outcome(
        data=result,
        show=lambda console: console.print(f"artifacts, pictures and reports are in {output}"),
    )
