"""What a shell is told: scripts that it can read, and the names that stand at each place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from mpq_compile import cli
from mpq_compile.registry import METRICS, SOLVERS


def mpq(*words: str, **variables: str) -> str:
    """Return what the console script prints."""
    program = "import sys; sys.argv[0] = 'mpq'; from mpq_compile.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def completed(line: str) -> list[str]:
    """Return what bash is offered for the last word of a line."""
    words = line.split(" ")
    told = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return mpq(_MPQ_COMPLETE="complete_bash", **told).split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str) -> None:
    script = mpq(_MPQ_COMPLETE=f"source_{shell}")
    assert "mpq" in script and f"complete_{shell}" in script
    program = shutil.which(shell)
    if program:
        subprocess.run([program, "-n"], input=script, text=True, check=True)


def test_names_complete() -> None:
    verbs = {command.name for command in cli.app.registered_commands}
    groups = {group.name for group in cli.app.registered_groups}
    assert set(completed("mpq ")) == verbs | groups
    assert completed("mpq sol") == ["solve"]
    assert completed("mpq plan --metric ") == sorted(METRICS)
    assert completed("mpq plan --solver ") == sorted(SOLVERS)
    assert "x86_64_vnni" in completed("mpq plan --target x86")
    assert completed("mpq targets show bit") == ["bit_serial"]
    assert "--size-mb" in completed("mpq plan --s")


def test_completion_is_offered() -> None:
    shown = mpq("--help")
    assert "--install-completion" in shown and "--show-completion" in shown
