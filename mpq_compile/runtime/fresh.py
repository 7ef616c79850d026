"""Artifacts timed and traced in fresh processes of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpq_compile.errors import DeviceError
from mpq_compile.runtime.environment import process_limit_s
from mpq_compile.runtime.timing import Timings
from mpq_compile.runtime.trace import Trace


def time_in_fresh_process(folders: Sequence[Path], blocks: int) -> Timings:
    """Return what a fresh process measures; see ``Device.time_networks``.

    Raises:
        DeviceError: The process failed, or took too long, or ``MPQ_PATIENCE`` is no time.
    """
    return Timings.from_json(_answer("timing", str(blocks), *map(str, folders)))


def trace_in_fresh_process(folder: Path, calls: int) -> Trace:
    """Return what a fresh process traces; see ``Device.trace_network``.

    Raises:
        DeviceError: The process failed, or took too long, or ``MPQ_PATIENCE`` is no time.
    """
    return Trace.from_json(_answer("trace", str(calls), str(folder)))


def _answer(module: str, number: str, *folders: str) -> Any:
    limit_s = process_limit_s()  # a wrong setting is said here, not by the process
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    command = [sys.executable, "-m", f"mpq_compile.runtime.{module}", number, *folders]
    where = ", ".join(folders)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=limit_s
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            "the network did not finish in time",
            where=where,
            expected=f"an answer within {limit_s:g} s",
            remedy="run it with `mpq run` to see how long one call takes",
        ) from error
    if done.returncode:
        raise DeviceError(
            "timing the artifact in a fresh process failed",
            where=where,
            found=done.stderr.strip()[-600:],
            remedy="run `mpq doctor`",
        )
    return json.loads(done.stdout.splitlines()[-1])
