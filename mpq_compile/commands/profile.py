"""``mpq profile``: measure what a model needs, or a sweep; look after the measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from mpq_compile.commands import options
from mpq_compile.commands.default_group import DefaultGroup
from mpq_compile.commands.groups import grouped
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.request import load, read_candidates
from mpq_compile.cost.generations import Generation
from mpq_compile.cost.store import Store
from mpq_compile.cost.targets import resolve_target
from mpq_compile.runtime.fingerprint import kernel_hash, toolchain_hash

if TYPE_CHECKING:
    from mpq_compile.profiling import Profiled


class _Group(DefaultGroup):
    default = "measure"
    positional = True


app = typer.Typer(
    cls=_Group,
    help="Measure what a model needs (`mpq profile MODEL --data X.npz`), or a sweep; list, prune, "
    "export, import.",
)
File = Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, one measurement each.")]


@app.command("measure")
@grouped
def measure(
    images: options.Images,
    model: options.OptionalModel = None,
    data: options.OptionalDataFile = None,
    candidates: options.Candidates = None,
    target: options.Target = "local",
    allow_float: options.AllowFloat = False,
    no_tune: options.NoTune = False,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="No model: kernels of many shapes, for a new device."),
    ] = False,
    budget_s: Annotated[
        float | None, typer.Option("--budget-s", help="Stop measuring after this many seconds.")
    ] = None,
    as_json: options.Json = False,
) -> Outcome:
    """Measure every kernel and every uniform network that planning this model needs.

    What was measured is kept, each round as it ends: a second run, or one after Ctrl-C, measures
    only what is missing, and again what was taken while the machine was not as usual. Exit code 1
    where the time ran out before everything was measured.
    """
    _check_arguments(model, data, sweep)
    from mpq_compile import profiling

    profiling.time_limit(budget_s, "--budget-s")
    names = read_candidates(candidates)
    if model is None or data is None:
        return _outcome(profiling.sweep(target, names, budget_s))
    resolve_target(target)
    loaded = load(model, data, images)
    return _outcome(
        profiling.profile(
            loaded.model,
            loaded.example_inputs,
            loaded.calibration,
            target,
            names,
            budget_s,
            allow_float=allow_float,
            tuned=not no_tune,
        )
    )


def _check_arguments(model: str | None, data: Path | None, sweep: bool) -> None:
    """Refuse a sweep of a model, and anything else without one."""
    if sweep and (model is not None or data is not None):
        raise typer.BadParameter("--sweep takes neither MODEL nor --data")
    if not sweep and (model is None or data is None):
        raise typer.BadParameter(f"{'MODEL' if model is None else '--data'} is missing")


def _outcome(done: Profiled) -> Outcome:
    def show(console: Console) -> None:
        where = f"in {done.seconds:.1f} s: {done.database}"
        console.print(f"{done.new} of {done.needed} measurements were new, {where}")
        if done.half_width is not None:
            console.print(f"medians are known within ± {100 * done.half_width:.1f} % or better")
        if done.unsettled:
            console.print(
                f"{done.unsettled} were taken while the machine was not as usual; run again when "
                "it is, and they are measured again"
            )
        if not done.complete:
            console.print("the time ran out; run again to go on")

    data = {
        "needed": done.needed,
        "new": done.new,
        "known": done.needed - done.new if done.complete else None,
        "unsettled": done.unsettled,
        "half_width": done.half_width,
        "complete": done.complete,
        "seconds": done.seconds,
        "database": done.database,
    }
    return Outcome(data=data, show=show, exit_code=0 if done.complete else 1)


@app.command("list")
def list_(as_json: options.Json = False) -> Outcome:
    """Count the measurements by device, toolchain and kernels.

    Those of another toolchain or of other kernels than this installation's are stale: they are not
    used.
    """
    with Store(read_only=True) as store:
        found = store.generations()
    data = {"database": store.path, "generations": [_record(g) for g in found]}
    return Outcome(data=data, show=lambda console: _show(console, found, store.path))


@app.command("prune")
def prune(
    stale: Annotated[
        bool,
        typer.Option(
            "--stale",
            help="What another toolchain or other kernels measured; other installations that "
            "share the database may still use it.",
        ),
    ] = False,
    as_json: options.Json = False,
) -> Outcome:
    """Delete measurements that this installation does not use, and say which."""
    if not stale:
        raise typer.BadParameter("say what to delete: --stale")
    with Store() as store:
        deleted = store.prune_stale(toolchain_hash(), kernel_hash())
        left = len(store)

    def show(console: Console) -> None:
        if deleted:
            _show(console, deleted, store.path)
        else:
            console.print(f"nothing is stale in {store.path}")
        count = sum(g.measurements for g in deleted)
        console.print(f"{count} measurements deleted, {left} left")

    data = {"database": store.path, "deleted": [_record(g) for g in deleted], "left": left}
    return Outcome(data=data, show=show)


def _is_current(generation: Generation) -> bool:
    return generation.is_current(toolchain_hash(), kernel_hash())


def _record(generation: Generation) -> dict[str, object]:
    return {**vars(generation), "current": _is_current(generation)}


def _show(console: Console, found: list[Generation], database: Path) -> None:
    table = Table(Column("device", overflow="fold"), "toolchain", "kernels", "measurements")
    for name in ("samples", "newest", ""):
        table.add_column(name)
    for g in found:
        counts = str(g.measurements), str(g.samples)
        state = "current" if _is_current(g) else "stale"
        table.add_row(g.device, g.toolchain, g.kernels, *counts, g.newest[:16], state)
    console.print(str(database))
    console.print(table)


@app.command("export")
def export(file: File, as_json: options.Json = False) -> Outcome:
    """Write all measurements of the database to a file of JSON lines."""
    with Store(read_only=True) as store:
        count = store.export_jsonl(file)
    return _moved(file, store.path, count, count, f"{count} measurements written to {file}")


@app.command("import")
def import_(file: File, as_json: options.Json = False) -> Outcome:
    """Take over the measurements of an export, except where the database has newer ones."""
    with Store() as store:
        count = store.import_jsonl(file)
        total = len(store)
    return _moved(file, store.path, count, total, f"{count} measurements taken from {file}")


def _moved(file: Path, database: Path, count: int, total: int, text: str) -> Outcome:
    data = {"file": file, "database": database, "measurements": count, "total": total}
    return Outcome(data=data, show=lambda console: console.print(text))
