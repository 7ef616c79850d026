"""``mpq export``: an artifact in the form that another program reads. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mpq_compile.commands import options
from mpq_compile.commands.outcome import Outcome


def export(
    artifact: options.Artifact,
    native: Annotated[
        Path,
        typer.Option(
            "--native", metavar="OUT", help="Write a folder that C++ runs without Python."
        ),
    ],
    as_json: options.Json = False,
) -> Outcome:
    """Write the network for programs without Python; `examples/cpp` is one."""
    from mpq_compile.runtime.native_export import export_native

    folder = export_native(artifact, native)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}

    def show(console: Console) -> None:
        for name, size in sizes.items():
            console.print(f"{folder / name}: {size} bytes")

    return Outcome(data={"folder": str(folder), "files": sizes}, show=show)
