"""The page on several machines: its program and its commands, run on this one."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.S | re.M)
COMMANDS = [
    shlex.split(line)
    for kind, text in BLOCKS
    if kind == "bash"
    for line in text.replace("\\\n", " ").splitlines()
    if not line.startswith("#")
]
PLAN, PROGRAM, FIRST_HOST, SECOND_HOST = COMMANDS
NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with what the page's commands name."""
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    x = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", x=x)
    program = next(text for kind, text in BLOCKS if kind == "python")
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    return tmp_path


def start(command: Sequence[str], place: Path) -> subprocess.Popen[str]:
    """Run a command of the page with this Python."""
    assert command[0] == "torchrun"
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *command[1:]],
        cwd=place,
        env={**os.environ, **fixed, "XDG_CACHE_HOME": str(place / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(*processes: subprocess.Popen[str]) -> str:
    """Return what the first of several prints; all have to end well."""
    texts = [process.communicate(timeout=200) for process in processes]
    for process, (_, errors) in zip(processes, texts, strict=True):
        assert process.returncode == 0, errors
    return texts[0][0]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def planned(place: Path) -> Any:
    """Return the plan that was written, without what depends on the clock."""
    plan = json.loads((place / "plan.json").read_text(encoding="utf-8"))
    plan["certificate"].pop("wall_s")
    return plan


def on_this_host(command: Sequence[str], port: str) -> list[str]:
    """Return a host's command with an address of this one, and a target known by equations."""
    here = {"10.0.0.1": "127.0.0.1", "29500": port}
    moved = [here.get(word, word) for word in command]
    moved[moved.index("--nproc-per-node") + 1] = "1"
    return [*moved, *PLAN[PLAN.index("--target") : PLAN.index("-o")]]


def test_commands_of_one_host_and_of_two_make_one_plan(place: Path) -> None:
    alone = ["torchrun", "--standalone", *PLAN[PLAN.index("-m") :]]
    ended(start(alone, place))
    expected = planned(place)
    for ports in ([], [free_port()]):
        (place / "plan.json").unlink()
        hosts = [on_this_host(c, port) for port in ports for c in (FIRST_HOST, SECOND_HOST)]
        shown = ended(*[start(command, place) for command in hosts or [PLAN]])
        assert planned(place) == expected and shown.count("plan written") == 1


def test_the_program_prints_once(place: Path) -> None:
    shown = ended(start(PROGRAM, place))
    assert len(shown.splitlines()) == 1 and "linear#0" in shown
