"""``mpq profile``: measure what a model needs; export and import measurements."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mpq_compile.commands import options
from mpq_compile.commands.default_group import DefaultGroup
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.request import Loaded, Request, read_candidates
from mpq_compile.cost.measurement import Measurement, MeasurementKey, Row
from mpq_compile.cost.store import Store
from mpq_compile.errors import PlanError, ProfileError, TimeRanOutError

if TYPE_CHECKING:
    from mpq_compile.session import Session


class _Group(DefaultGroup):
    default = "measure"
    positional = True


app = typer.Typer(
    cls=_Group,
    help="Measure what a model needs (`mpq profile MODEL --data X.npz`); export, import.",
)
File = Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, one measurement each.")]


class RecordingStore(Store):
    """A store that remembers which measurements were asked for, were there, and were made."""

    def __init__(self) -> None:
        self.asked: set[MeasurementKey] = set()
        self.known: set[MeasurementKey] = set()
        self.made: set[MeasurementKey] = set()
        super().__init__()

    def get_many(self, keys: Iterable[MeasurementKey]) -> dict[MeasurementKey, Measurement]:
        """Return what is known, and note what was asked for."""
        wanted = list(keys)
        self.asked.update(wanted)
        found = super().get_many(wanted)
        self.known.update(found.keys() - self.made)
        return found

    def put_many(self, rows: Iterable[Row]) -> int:
        """Store the rows, and note them."""
        given = list(rows)
        self.made.update(key for key, _ in given)
        return super().put_many(given)


@app.command("measure")
def measure(
    model: options.Model,
    data: options.DataFile,
    candidates: options.Candidates = None,
    target: options.Target = "local",
    allow_float: options.AllowFloat = False,
    no_tune: options.NoTune = False,
    budget_s: Annotated[
        float | None, typer.Option("--budget-s", help="Stop measuring after this many seconds.")
    ] = None,
    as_json: options.Json = False,
) -> Outcome:
    """Measure every kernel and every uniform network that planning this model needs.

    What was measured is kept: a second run measures only what is missing. Exit code 1 where the
    time ran out before everything was measured.
    """
    if budget_s is not None and not 0 < budget_s < float("inf"):
        raise PlanError(
            "a time must be a positive number",
            where="--budget-s",
            expected="a finite number above 0",
            found=budget_s,
            remedy="correct the number, or leave the option out",
        )
    request = Request(
        model=model,
        data=data,
        target=target,
        candidates=read_candidates(candidates),
        allow_float=allow_float,
        tuned=not no_tune,
    )
    session = _session(request, request.load())
    start = time.monotonic()
    with RecordingStore() as store:
        complete = _measured(session, store, budget_s)
    return _outcome(store, complete, time.monotonic() - start)


def _session(request: Request, loaded: Loaded) -> Session:
    from mpq_compile.session import Session

    session = Session(
        loaded.model,
        loaded.example_inputs,
        loaded.calibration,
        target=request.target,
        candidates=request.candidates,
        allow_float=request.allow_float,
        tuned=request.tuned,
    )
    if session.analytic:
        raise ProfileError(
            "an analytic target is known by its equations: there is nothing to measure",
            where=request.target,
            expected="a target that is reached, such as local",
            found="kind: analytic",
            remedy="plan right away, or profile for local",
        )
    return session


def _measured(session: Session, store: Store, budget_s: float | None) -> bool:
    """Tune kernels, time them, then whole networks; return False where the time ran out."""
    from mpq_compile.anchors import network_anchors

    limit = float("inf") if budget_s is None else budget_s
    end = time.monotonic() + limit
    session.tune(store, limit)
    try:
        alone = session.measured_in(store, end - time.monotonic())
    except TimeRanOutError:
        return False
    if time.monotonic() >= end:
        return False
    network_anchors(session, alone.costs, store)
    return True


def _outcome(store: RecordingStore, complete: bool, seconds: float) -> Outcome:
    needed, new = len(store.known | store.made if complete else store.asked), len(store.made)

    def show(console: Console) -> None:
        console.print(f"{new} of {needed} measurements were new, in {seconds:.1f} s: {store.path}")
        if not complete:
            console.print("the time ran out; run again to go on")

    data = {
        "needed": needed,
        "new": new,
        "known": len(store.known) if complete else None,
        "complete": complete,
        "seconds": seconds,
        "database": store.path,
    }
    return Outcome(data=data, show=show, exit_code=0 if complete else 1)


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
