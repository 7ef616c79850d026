"""``mpq export``: a network in the form that another program reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mpq_compile.commands import options
from mpq_compile.commands.groups import grouped
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.plan import check_output
from mpq_compile.commands.reading import read_plan
from mpq_compile.commands.request import Loaded, load
from mpq_compile.commands.views import show_notes
from mpq_compile.errors import PlanError
from mpq_compile.types import Plan

_FORMS = "Forms"


@dataclass(frozen=True, kw_only=True)
class Forms:
    """What is written: one form at least."""

    native: Annotated[
        Path | None,
        typer.Option(
            "--native",
            metavar="OUT",
            help="Write a folder that C++ runs without Python.",
            rich_help_panel=_FORMS,
        ),
    ] = None
    onnx: Annotated[
        Path | None,
        typer.Option(
            "--onnx",
            metavar="OUT.onnx",
            help="Write QDQ ONNX, with INT4 and INT8 weights.",
            rich_help_panel=_FORMS,
        ),
    ] = None
    encodings: Annotated[
        Path | None,
        typer.Option(
            "--encodings",
            metavar="OUT.json",
            help="Write bits, scales and zero points; integer weights beside them.",
            rich_help_panel=_FORMS,
        ),
    ] = None

    def check(self, exact: bool) -> None:
        """Refuse places that cannot be written, and what asks for nothing."""
        if exact and self.onnx is None:
            raise PlanError(
                "--exact is a form of ONNX files",
                where="--exact",
                expected="--onnx OUT.onnx beside it",
                found="no --onnx",
                remedy="name the file, or leave --exact out",
            )
        of_model = [path for path in (self.onnx, self.encodings) if path is not None]
        if self.native is not None and of_model:
            raise PlanError(
                "the forms are of different sources",
                where="mpq export",
                expected="--native of an artifact, or --onnx and --encodings of a model",
                found="both",
                remedy="export one after the other",
            )
        if self.native is None and not of_model:
            raise PlanError(
                "nothing is asked for",
                where="mpq export",
                expected="--native, --onnx or --encodings",
                found="none of them",
                remedy="name the form to write",
            )
        for path, what in ((self.onnx, "the ONNX file"), (self.encodings, "the encodings")):
            if path is not None:
                check_output(path, what)


@grouped
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR|MODEL",
            help="Artifact, for --native; else file.py:factory or a .pt2 file.",
            show_default=False,
        ),
    ],
    images: options.Images,
    forms: Forms,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan", metavar="plan.json", help="For --onnx and --encodings: plan or artifact."
        ),
    ] = None,
    data: options.OptionalDataFile = None,
    biases: Annotated[
        str,
        typer.Option("--biases", help="Of --onnx: float32 (as deployed) or int32 (fused)."),
    ] = "float32",
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Of --onnx: integers as deployed, bit for bit; not for speed."
        ),
    ] = False,
    allow_float: options.AllowFloat = False,
    as_json: options.Json = False,
) -> Outcome:
    """Write the network for other programs: C++ (examples/cpp), ONNX Runtime, other toolchains."""
    forms.check(exact)
    if forms.native is not None:
        written = _native(Path(source), forms.native)
    else:
        subject = _planned(source, plan, data, images)
        written = _exported(*subject, forms, biases, exact, allow_float)

    def show(console: Console) -> None:
        for name, size in written["files"].items():
            console.print(f"{Path(written.get('folder', '')) / name}: {size} bytes")
        show_notes(console, written["notes"])

    return Outcome(data=written, show=show)


def _native(artifact: Path, folder: Path) -> dict[str, Any]:
    from mpq_compile.runtime.native_export import export_native

    made = export_native(artifact, folder)
    files = {path.name: path.stat().st_size for path in sorted(made.iterdir())}
    return {"folder": str(made), "files": files, "notes": []}


def _planned(
    source: str, plan: Path | None, data: Path | None, images: options.Images
) -> tuple[Plan, Loaded]:
    """Read plan, model and data; an artifact holds native code, and no graph to export."""
    if plan is None or data is None:
        artifact = (Path(source) / "manifest.json").is_file()
        given = f"--plan {source}" if artifact else "--plan plan.json"
        raise PlanError(
            "an artifact holds native code and no graph"
            if artifact
            else "the plan or the data are missing",
            where=source,
            expected="a model, its plan and its calibration data",
            found="an artifact" if artifact else "a model alone" if plan is None else "no data",
            remedy=f"mpq export {'MODEL' if artifact else source} {given} --data calib.npz …",
        )
    given_plan = read_plan(plan)
    return given_plan, load(source, data, images)


def _exported(
    plan: Plan, loaded: Loaded, forms: Forms, biases: str, exact: bool, allow_float: bool
) -> dict[str, Any]:
    from mpq_compile.integrations.encodings.collect import export_encodings
    from mpq_compile.integrations.onnx_export import export_onnx, inexact_nodes

    subject = (loaded.model, loaded.example_inputs, loaded.calibration)
    files: list[Path] = []
    notes: list[str] = []
    if forms.onnx is not None:
        path = export_onnx(
            plan, forms.onnx, *subject, biases=biases, exact=exact, allow_float=allow_float
        )
        files.append(path)
        inexact = inexact_nodes(path) if exact else []
        if inexact:
            notes.append(f"no exact form, may be a step of codes off: {', '.join(inexact)}")
    if forms.encodings is not None:
        path = export_encodings(plan, forms.encodings, *subject, allow_float=allow_float)
        files += [path, path.with_suffix(".safetensors")]
    return {"files": {str(path): path.stat().st_size for path in files}, "notes": notes}
