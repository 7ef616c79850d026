"""Several processes: the same tables and fits as one, also where one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("ranks_program.py")
# All that is done on units: of sites, of slices, with gradients, with pairs.
METRICS = "kl,sqnr,gauss_newton,taylor,pairwise"


def environment(cache: Path, **more: str) -> dict[str, str]:
    """Return the variables of a rank; threads fixed, for sums in float depend on them."""
    fixed = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache), "PYTHONWARNINGS": "ignore"}
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return {**kept, **fixed, **more}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def started(size: int, cache: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """Start ranks by hand, as a cluster's launcher does: each on its own."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments],
            env=environment(
                cache / str(rank),
                RANK=str(rank),
                WORLD_SIZE=str(size),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ended(ranks: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Return exit code, output and errors of each rank."""
    try:
        texts = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, *text) for rank, text in zip(ranks, texts, strict=True)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What one process finds, on fitted weights."""
    cache = tmp_path_factory.mktemp("alone")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), METRICS, "rounded"],
        env=environment(cache),
        check=True,
        capture_output=True,
        text=True,
    )
    found: Mapping[str, Any] = json.loads(done.stdout)
    assert found["units"] == {} and found["fits"]
    return found


def test_two_processes_find_what_one_does(alone: Mapping[str, Any], tmp_path: Path) -> None:
    (code, text, errors), (other, quiet, _) = ended(started(2, tmp_path, METRICS, "rounded"))
    assert (code, other) == (0, 0), errors
    found = json.loads(text)
    assert found["tables"] == alone["tables"] and found["fits"] == alone["fits"]
    assert not quiet and found["units"]["0"] > 0 and found["units"]["1"] > 0


def test_work_of_a_killed_process_is_done_again(alone: Mapping[str, Any], tmp_path: Path) -> None:
    found = ended(started(2, tmp_path, "taylor,sqnr", "rounded", "1", "dies"))
    assert [code for code, *_ in found] == [0, -signal.SIGKILL]
    _, text, errors = found[0]
    told = json.loads(text)
    assert told["tables"] == {name: alone["tables"][name] for name in ("taylor", "sqnr")}
    assert told["fits"] == alone["fits"]
    assert "rank 1 was lost" in errors and set(told["units"]) == {"0"}


def test_a_rank_with_other_data_does_not_help(alone: Mapping[str, Any], tmp_path: Path) -> None:
    (code, text, _), (other, _, errors) = ended(started(2, tmp_path, "kl", "rounded", "stranger"))
    assert (code, other) == (0, 0)
    assert json.loads(text)["tables"]["kl"] == alone["tables"]["kl"]
    assert set(json.loads(text)["units"]) == {"0"}
    assert "rank 1 does not help" in errors and "another network, other data" in errors


def test_a_lost_leader_is_an_error_of_the_others(tmp_path: Path) -> None:
    (code, *_), (other, _, errors) = ended(started(2, tmp_path, "kl", "nearest", "0", "dies"))
    assert code == -signal.SIGKILL and other == 1
    assert "DeviceLostError" in errors
