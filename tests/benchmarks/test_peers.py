"""The benchmark against peers: what it runs, how it judges, what it prints. No time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import peers
import pytest
import torch
from contenders import PEERS, Contender, gemv, gemv_ours, named, ours
from contenders.goals import Goal, goals_of, judged
from contenders.interleave import QUICK, Result, run
from contenders.ratios import ratio_to_best, sqnr_db
from contenders.report import document, section, table, verdict_lines
from contenders.task import NetTask
from peer_nets import NETWORKS, PeerNet, conv_norm
from torch import nn

FP32 = Contender(name="torch fp32", precision="fp32", entry="contenders.torch_runtime:eager")


def tiny() -> nn.Module:
    return nn.Sequential(conv_norm(3, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


TINY = PeerNet(name="tiny", structure=tiny, shape=(3, 8, 8))


def failing(task: NetTask) -> None:
    raise ValueError("this one never works")


def dying(task: NetTask) -> None:
    os._exit(3)


@cache
def results_of(folder: Path) -> list[Result]:
    """One run of ours, torch, one that fails, one that is not installed, one that dies."""
    task = NetTask(TINY, 2, 1, folder)
    contenders = [
        *ours(["w8a8"]),
        FP32,
        Contender(name="failing", precision="fp32", entry=f"{__name__}:failing"),
        Contender(name="absent", precision="fp32", entry="none:none", needs=("no_such_package",)),
        Contender(name="dying", precision="fp32", entry=f"{__name__}:dying"),
    ]
    return run(contenders, task, QUICK, task.float_outputs())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    return results_of(tmp_path_factory.mktemp("peers"))


def test_every_contender_is_timed_or_has_a_reason(results: list[Result]) -> None:
    own, eager, broken, absent, died = results
    for result in (own, eager):
        assert not result.reason
        assert len(result.block_ms) == QUICK.rounds and min(result.block_ms) > 0
        assert result.calls >= 3 * QUICK.rounds
    assert "this one never works" in broken.reason
    assert "no_such_package" in absent.reason and "peers" in absent.reason
    assert "ended with code 3" in died.reason
    assert not (broken.block_ms or absent.block_ms or died.block_ms)


def test_outputs_are_compared_with_float(results: list[Result]) -> None:
    own, eager, *_ = results
    assert own.sqnr_db is not None and 20 < own.sqnr_db < 60
    assert eager.sqnr_db is not None and eager.sqnr_db > 100


def test_the_table_and_the_json_hold_everything(results: list[Result]) -> None:
    verdicts = judged(results, [Goal(ours="ours w8a8", at_least=0.01)])
    lines = table(results)
    assert len(lines) == 1 + len(results)
    assert "torch fp32" in lines[1] and "no_such_package" in lines[4]
    assert "no peer ran" in lines[1]  # none of its precision
    body = document(1, QUICK, [section(results, verdicts, {"network": "tiny", "batch": 2})])
    read = json.loads(json.dumps(body))
    entries = read["runs"][0]["contenders"]
    assert [entry["name"] for entry in entries] == [r.contender.name for r in results]
    assert entries[0]["ratio_to_best"]["peer"] == "torch fp32"
    assert read["environment"]["versions"]["torch"] == torch.__version__
    assert read["environment"]["threads"] == 1


def result_of(contender: Contender, block_ms: list[float], noise: float) -> Result:
    return Result(contender=contender, block_ms=block_ms, sqnr_db=noise, calls=len(block_ms))


@pytest.mark.parametrize(
    ("own_ms", "own_db", "met"), [(1.0, 40.0, True), (1.8, 40.0, False), (1.0, 38.0, False)]
)
def test_a_goal_needs_speed_and_accuracy(own_ms: float, own_db: float, met: bool) -> None:
    (own,) = ours(["w8a8"])
    found = [result_of(own, [own_ms] * 5, own_db), result_of(FP32, [2.0] * 5, 39.5)]
    (verdict,) = judged(found, [Goal(ours="ours w8a8", at_least=1.25)])
    assert verdict.met is met
    assert verdict.ratio.value == pytest.approx(2.0 / own_ms)
    (line,) = verdict_lines([verdict])
    assert line.startswith("met" if met else "missed")
    assert ("too much noise" in line) is (own_ms == 1.0 and not met)


def test_noise_that_float32_cannot_tell_apart_does_not_count() -> None:
    (own,) = ours(["fp32"])
    found = [result_of(own, [1.0] * 3, 120.0), result_of(FP32, [1.0] * 3, 135.0)]
    (verdict,) = judged(found, [Goal(ours="ours fp32", at_least=0.9)])
    assert verdict.met and verdict.noise_db == 0


def test_rounds_are_paired() -> None:
    """A machine that slows down for everybody changes no ratio."""
    drift = np.linspace(1, 3, 9)
    ratio = ratio_to_best(list(2 * drift), {"slow": list(8 * drift), "best": list(3 * drift)})
    assert ratio is not None and ratio.peer == "best"
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_interval_covers_the_noise_of_rounds() -> None:
    generator = np.random.default_rng(0)
    own, peer = generator.normal(1.0, 0.02, 40), generator.normal(1.3, 0.02, 40)
    ratio = ratio_to_best(list(own), {"peer": list(peer)})
    assert ratio is not None
    assert 1.25 < ratio.low < 1.3 < ratio.high < 1.35
    assert ratio_to_best(list(own), {}) is None


def test_sqnr_is_that_of_known_noise() -> None:
    signal = [np.full(100, 3.0), np.full(50, -3.0)]
    assert sqnr_db([y * 1.01 for y in signal], signal) == pytest.approx(40.0)
    assert sqnr_db(signal, signal) == float("inf")


# Parameters as published, ResNet-20 with 1×1 shortcuts; of the recurrent ones counted by hand.
PARAMETERS = {
    "resnet18": 11_689_512,
    "r3d18": 33_371_472,
    "mobilenetv2": 3_504_872,
    "resnet20": 272_474,
    "encoder": 10_646_784,
    "lstm": 220_684,
    "gru": 165_900,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_those_of_the_papers(name: str) -> None:
    module = NETWORKS[name].structure()
    assert sum(p.numel() for p in module.parameters()) == PARAMETERS[name]
    assert all(goal.at_least > 0 for batch in (1, 8) for goal in goals_of(name, batch))


def test_batch_norms_hold_statistics() -> None:
    first, second = TINY.build(), TINY.build()
    norm = first[0][1]
    assert norm.running_mean.abs().min() > 0 and (norm.running_var - 1).abs().min() > 1e-3
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("candidate", ["w8a8", "w4a16", "w4a8g128"])
def test_gemv_kernels_run(candidate: str, tmp_path: Path) -> None:
    task = gemv.GemvTask(256, 128, 1, tmp_path, quick=True)
    prepared = gemv_ours.prepare(task, candidate)
    assert prepared.repeats == task.copies(int(candidate[1]))
    out = prepared.run(prepared.example)
    assert out.shape == (256,) and out.dtype == np.float32


def test_contenders_are_chosen_by_text() -> None:
    names = [c.name for c in named(PEERS, ["openvino int8", "torch"])]
    assert names == ["torch fp32", "OpenVINO int8", "OpenVINO int8+bf16"]
    assert len(named(PEERS, [""])) == len(PEERS)


def test_a_mix_is_planned_within_its_budget(tmp_path: Path) -> None:
    (mix,) = ours(["w8a8+bf16@1000"])
    assert mix.precision == "bf16" and mix.times
    assert any(goal.ours == mix.name for goal in goals_of("mobilenetv2", 1, [mix.name]))
    prepared = mix.prepare(NetTask(TINY, 1, 2, tmp_path))
    assert prepared.run(prepared.example).shape == (1, 10)


@pytest.mark.parametrize("text", ["w8a8+bf16", "w8a8@soon", "w8a8@0", "w9a8", ""])
def test_a_mix_without_a_budget_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        peers.parsed(["--net", "resnet18", "--candidates", text])
    assert caught.value.code == 2
    assert "--candidates" in capsys.readouterr().err


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    """Even while it prepares: what goes on working disturbs the next run."""
    script = tmp_path / "waits.py"
    script.write_text(_WAITS, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    written = tmp_path / "pid"
    try:
        assert parent.stdout is not None and parent.stdout.readline() == "starting\n"
        _until(lambda: written.exists() and written.read_text(encoding="utf-8") != "")
    finally:
        parent.kill()
        parent.wait()
    worker = int(written.read_text(encoding="utf-8"))
    _until(lambda: not _runs(worker))


_WAITS = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace

def prepare(task):
    (Path(task.folder) / "pid").write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(600)

if __name__ == "__main__":
    from contenders import Contender
    from contenders.worker import Worker

    folder = sys.argv[1]
    print("starting", flush=True)
    task = SimpleNamespace(threads=1, folder=folder)
    contender = Contender(name="waits", precision="fp32", entry="waits:prepare")
    Worker(contender, task, Path(folder) / "log")
"""


def _until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Tell whether a process runs; one that ended may wait for whoever inherited it."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_unknown_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        peers.parsed(["--net", "resnet19"])
    assert caught.value.code == 2
    assert "resnet19" in capsys.readouterr().err
