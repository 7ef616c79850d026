"""The command line ``mpq``: one subcommand a file, in ``mpq_compile.commands``.

Starting it imports neither torch nor TVM; each command imports what it needs.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from mpq_compile import __version__
from mpq_compile.commands import (
    check,
    compile,
    demo,
    device,
    doctor,
    explain,
    export,
    finetune,
    frontier,
    plan,
    profile,
    report,
    run,
    search,
    solve,
    stability,
    targets,
    trace,
    verify,
)
from mpq_compile.commands.failures import INTERRUPTED, failure, interrupted
from mpq_compile.commands.interrupts import noted_interrupts
from mpq_compile.commands.notices import noted, with_notes
from mpq_compile.commands.outcome import Outcome, console_on, json_text, reserved_stdout
from mpq_compile.commands.ranks import execute_on_ranks
from mpq_compile.commands.service import Announcer, run_service
from mpq_compile.integrations import launch

app = typer.Typer(
    name="mpq",
    help="Mixed-precision quantization that meets a measured budget.",
    epilog="Exit codes: 0 done; 1 a budget or check failed, the time ran out or a measurement was "
    "inconclusive; 2 wrong input; 130 interrupted.",
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.add_typer(targets.app, name="targets")
app.add_typer(profile.app, name="profile")
app.add_typer(device.app, name="device")
app.command("plan")(plan.plan)
app.command("frontier")(frontier.frontier)
app.command("stability")(stability.stability)
app.command("search")(search.search)
app.command("compile")(compile.compile_model)
app.command("finetune")(finetune.finetune)
app.command("verify")(verify.verify)
app.command("trace")(trace.trace)
app.command("run")(run.run)
app.command("report")(report.report)
app.command("explain")(explain.explain)
app.command("export")(export.export)
app.command("solve")(solve.solve)
app.command("check")(check.check)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """Options before the verb."""


def execute(arguments: Sequence[str]) -> int:
    """Run one command, print what it ends with, and return the exit code."""
    if not _wants_json(arguments):
        announcer = Announcer(stream=None)
        outcome = _noted_outcome(arguments, announcer)
        to_stderr = outcome.failed or announcer.done
        outcome.show(console_on(sys.stderr if to_stderr else sys.stdout))
        return outcome.exit_code
    with reserved_stdout() as stream:
        announcer = Announcer(stream=stream)
        outcome = _noted_outcome(arguments, announcer)
        if announcer.done:
            outcome.show(console_on(sys.stderr))
        else:
            print(json_text(outcome.data), file=stream, flush=True)
    return outcome.exit_code


def main() -> NoReturn:
    """Entry point of ``mpq`` and of ``python -m mpq_compile``."""
    debug = os.environ.get("MPQ_DEBUG", "0") not in ("", "0")
    level = logging.INFO if debug else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(name)s: %(message)s")
    if not debug:
        # What torch says to its own authors about its own calls.
        warnings.simplefilter("ignore", FutureWarning)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks "≤" shows "?"
    try:
        arguments = sys.argv[1:]
        code = execute_on_ranks(arguments, execute) if launch.launched() else execute(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:  # after the command itself had ended
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader is gone (`mpq explain … | head`): nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
    sys.exit(code)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Tell whether ``--json`` is among the options; help is for people."""
    options = list(arguments)
    if "--" in options:
        options = options[: options.index("--")]
    return "--json" in options and "--help" not in options


def _noted_outcome(arguments: Sequence[str], announcer: Announcer) -> Outcome:
    """Return what a command ends with; what it must say of the database goes to standard error."""
    with noted() as notes:
        outcome = _outcome(arguments, announcer)
    for note in notes:
        console_on(sys.stderr).print(f"note: {note}")
    return with_notes(outcome, notes)


def _outcome(arguments: Sequence[str], announcer: Announcer) -> Outcome:
    """Return what a command ends with; after Ctrl-C, whatever was raised is its end."""
    with noted_interrupts() as interrupts:
        try:
            return _returned(arguments, announcer)
        except BrokenPipeError:
            raise
        except (KeyboardInterrupt, typer.Abort):
            return interrupted()
        except Exception as error:
            return interrupted() if interrupts.came else failure(error)


def _returned(arguments: Sequence[str], announcer: Announcer) -> Outcome:
    returned: Any = app(list(arguments) or ["--help"], prog_name="mpq", standalone_mode=False)
    if returned == INTERRUPTED:
        return interrupted()
    if not isinstance(returned, Outcome):
        return Outcome(exit_code=returned or 0)
    return returned if returned.service is None else run_service(returned, announcer)
