"""Verbs as torchrun starts them: rank 0 runs the verb, the others help it and say nothing.

torchrun --nproc-per-node 2 -m mpq_compile plan net.py:make --data calib.npz
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from mpq_compile.integrations import launch

# Verbs with sensitivities or fits of sites; any other is rank 0's alone.
SHARED = ("compile", "frontier", "plan")
Execute = Callable[[Sequence[str]], int]


def execute_on_ranks(arguments: Sequence[str], execute: Execute) -> int:
    """Run a verb on rank 0 with the help of the others; return this rank's exit code.

    A rank that cannot help says so on standard error and ends with 0: a launcher ends all ranks
    when one of them fails.
    """
    leads = launch.rank() == 0
    shared = bool(arguments) and arguments[0] in SHARED
    if not shared:
        return execute(arguments) if leads else 0
    from mpq_compile.integrations.torch_distributed import distributed

    if not leads:
        _leave_stdout()
    code = 0
    with distributed():
        code = execute(arguments)
    return code if leads else 0


def _leave_stdout() -> None:
    """Leave standard output to rank 0."""
    sys.stdout.flush()
    os.dup2(2, 1)
