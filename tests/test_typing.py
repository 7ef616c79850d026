"""The public names as a user's type checker sees them: all typed, none missing, none unknown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mpq_compile as mpq

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from typing_extensions import assert_type

import mpq_compile as mpq

model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 4))
images = torch.randn(32, 3, 8, 8)
budget = mpq.Budget(latency_ms=1.0, size_mb=0.1)


def top1(net: Callable[..., Any]) -> float:
    return float(net(images).argmax(1).float().mean())


def use() -> list[str]:
    plan = mpq.plan(model, images[:1], [images], budget=budget, rounding="gptq", samples=8)
    assert_type(plan, mpq.Plan)
    assert_type(plan.assignment, Mapping[str, str])
    net = mpq.compile(model, images[:1], [images], plan=plan)
    assert_type(net, mpq.CompiledNetwork)
    assert_type(net.save("artifact"), Path)
    assert_type(net.verification, mpq.Verification | None)
    assert_type(mpq.assign(model, images[:1], [images], "w8a8"), mpq.CompiledNetwork)
    assert_type(mpq.load("artifact"), mpq.CompiledNetwork)
    report = mpq.frontier(model, images[:1], [images], axis="size_mb", evaluate=top1)
    assert_type(report, mpq.FrontierReport)
    assert_type(mpq.Candidate.parse("w4a8").weight_bits, int)
    with mpq.distributed(lease_s=5.0) as ranks:
        assert_type(ranks.leads, bool)
    try:
        mpq.stability(model, images[:1], [images], budget=budget)
    except mpq.InfeasibleBudgetError as error:
        assert_type(error.remedy, str | None)
    except mpq.errors.MpqError as error:
        assert_type(error.message, str)
    assert_type(mpq.__version__, str)
    return list(plan.notes)
"""


def checked(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Return what mypy says of a program; the package counts as installed."""
    (folder / "program.py").write_text(program, encoding="utf-8")
    options = ["--strict", "--follow-imports=silent", "--config-file=", "--python-version=3.11"]
    cache = f"--cache-dir={folder / 'cache'}"
    return subprocess.run(
        [sys.executable, "-m", "mypy", *options, cache, "program.py"],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_public_names_are_typed(tmp_path: Path) -> None:
    public = [name for name in mpq.__all__ if name not in ("errors", "__version__")]
    used = "\n".join(f"{name}_: object = mpq.{name}" for name in public)
    done = checked(f"{PROGRAM}\n{used}\n", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = PROGRAM.replace("mpq.load(", "mpq.lode(").replace("latency_ms=1.0", "latency_ms='1'")
    done = checked(wrong, tmp_path)
    assert 'has no attribute "lode"' in done.stdout
    assert 'incompatible type "str"' in done.stdout
