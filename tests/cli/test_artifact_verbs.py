"""`mpq compile`, `verify`, `trace`, `run` and `explain` of an artifact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from verbs import Mpq

from mpq_compile.commands.verify import Checked
from mpq_compile.runtime.artifact import open_artifact, seal
from mpq_compile.runtime.timing import Timings
from mpq_compile.runtime.verify import MOST


def runs(*blocks_ms: float) -> list[Timings]:
    """What three processes report whose blocks have ten calls that all take the same."""
    timings = Timings(
        latencies_ms=[[[latency_ms] * 10 for latency_ms in blocks_ms]],
        reference_ms=[1.0] * len(blocks_ms),
        usual_ms=1.0,
        repeated=0,
        energy_mj=[None],
        memory_bytes=1,
    )
    return [timings] * 3


def test_compile_a_plan(artifact: Path, plan_file: Path) -> None:
    names = {path.name for path in artifact.iterdir()}
    assert names >= {"manifest.json", "network.so", "weights.bin", "plan.json"}
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    stored = json.loads((artifact / "plan.json").read_text(encoding="utf-8"))
    assert stored["assignment"] == plan["assignment"]


def test_a_rejected_network_exits_with_one(
    mpq: Mpq,
    job: tuple[str, ...],
    plan_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mpq_compile.runtime.verify.measure_artifact", lambda *_: runs(9.0))
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    plan.update(target="local", budget={"latency_ms": 1.0})
    (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    words = ("--plan", tmp_path / "plan.json", "-o", tmp_path / "out", "--json")
    result = mpq("compile", *job, *words)
    assert result.code == 1
    assert result.json["verification"]["status"] == "rejected"
    assert result.json["size_bytes"] == result.json["plan"]["predicted"]["size_bytes"]
    assert {row["requested"] for row in result.json["audit"]} >= set(plan["assignment"].values())
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "option", [("--size-mb", "1"), ("--candidates", "w8a8"), ("--correction", "bias")]
)
def test_a_plan_has_decided_already(
    mpq: Mpq, job: tuple[str, ...], plan_file: Path, tmp_path: Path, option: tuple[str, str]
) -> None:
    result = mpq("compile", *job, "--plan", plan_file, *option, "-o", tmp_path / "out", "--json")
    assert (result.code, result.json["where"]) == (2, "--plan")


def test_compile_keeps_other_files(mpq: Mpq, job: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("", encoding="utf-8")
    result = mpq("compile", *job, "-o", tmp_path, "--json")
    assert (result.code, result.json["error"]) == (2, "ArtifactError")


def test_verify_measures(mpq: Mpq, artifact: Path) -> None:
    result = mpq("verify", artifact, "--processes", "2", "--latency-ms", "1e-9", "--json")
    assert result.code == 1
    assert result.json["status"] == "rejected"
    # More may follow, on a machine that is not quiet.
    assert 2 <= result.json["processes"] <= 2 * MOST


def test_trace_times_every_kernel(mpq: Mpq, artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "net"
    shutil.copytree(artifact, copy)
    result = mpq("trace", copy, "--calls", "5", "--json")
    assert result.code == 0 and result.json["calls"] == 5
    _, plan = open_artifact(copy)
    assert {step["name"] for step in result.json["steps"]} >= set(plan.assignment)
    assert json.loads((copy / "trace.json").read_text(encoding="utf-8"))["calls"] == 5
    named = mpq("trace", copy, "--calls", "6", "--target", "local", "--json")
    assert named.json["notes"] == []
    assert json.loads((copy / "trace.json").read_text(encoding="utf-8"))["calls"] == 6
    shown = mpq("trace", copy, "--calls", "5", "--slowest", "1")
    assert sum(site in shown.out for site in plan.assignment) <= 1
    assert "medians of 5 calls" in shown.out


@pytest.mark.parametrize(
    ("options", "size_mb", "code"),
    [
        (("--latency-ms", "10"), None, 0),
        (("--latency-ms", "8"), None, 1),
        (("--latency-p95-ms", "8"), None, 1),
        ((), None, 0),
        ((), 1e-6, 1),
    ],
)
def test_verdicts(
    mpq: Mpq,
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    size_mb: float | None,
    code: int,
) -> None:
    monkeypatch.setattr("mpq_compile.runtime.verify.measure_artifact", lambda *_: runs(9.0))
    if size_mb is not None:
        checked = Checked(budget={"size_mb": size_mb})
        monkeypatch.setattr("mpq_compile.commands.verify.own_budget", lambda plan: checked)
    result = mpq("verify", artifact, *options, "--json")
    assert result.code == code
    assert result.json["kept"] == (code == 0)


def test_an_inconclusive_measurement_is_no_success(
    mpq: Mpq, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpq_compile.runtime.verify.measure_artifact", lambda *_: runs(0.5, 5.0))
    result = mpq("verify", artifact, "--latency-ms", "3", "--json")
    assert (result.code, result.json["status"]) == (1, "inconclusive")


def test_what_is_kept_on_a_busy_machine_says_that_it_was_busy(
    mpq: Mpq, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpq_compile.runtime.verify.measure_artifact", lambda *_: runs(0.5, 5.0))
    result = mpq("verify", artifact, "--latency-ms", "9", "--json")
    assert (result.code, result.json["status"]) == (0, "accepted")
    assert result.json["settled"] is False
    shown = mpq("verify", artifact, "--latency-ms", "9").out
    assert "did not settle: the reference workload was up to" in shown
    monkeypatch.setattr("mpq_compile.runtime.verify.measure_artifact", lambda *_: runs(9.0))
    assert "did not settle" not in mpq("verify", artifact, "--latency-ms", "10").out


def with_budget(artifact: Path, folder: Path, **changes: object) -> Path:
    """Return a sealed copy of an artifact whose plan has other fields."""
    shutil.copytree(artifact, folder)
    manifest, _ = open_artifact(folder)
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    (folder / "plan.json").write_text(json.dumps(plan | changes), encoding="utf-8")
    seal(folder, manifest)
    return folder


def test_the_latency_of_another_device_is_not_judged_here(
    mpq: Mpq, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpq_compile.runtime.verify.measure_artifact", lambda *_: runs(9.0))
    budget = {"latency_ms": 1.0, "energy_mj": 2.0, "size_mb": 3.0}
    folder = with_budget(artifact, tmp_path / "net", target="bit_serial", budget=budget)
    result = mpq("verify", folder, "--json")
    assert (result.code, result.json["kept"]) == (1, None)
    assert result.json["budget"] == {"size_mb": 3.0}
    assert result.json["not_checked"] == {"latency_ms": 1.0, "energy_mj": 2.0}
    assert "bit_serial" in result.json["notes"][0]
    shown = mpq("verify", folder).out
    assert "budget: size_mb ≤ 3 MB, latency_ms ≤ 1 ms, energy_mj ≤ 2 mJ" in shown
    assert "not checked: latency_ms ≤ 1 ms, energy_mj ≤ 2 mJ" in shown
    assert "the budget is not shown to be kept" in shown
    given = mpq("verify", folder, "--latency-ms", "10", "--json")
    assert (given.code, given.json["kept"], given.json["not_checked"]) == (0, True, {})


def test_energy_that_the_device_does_not_tell_is_not_judged(
    mpq: Mpq, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpq_compile.runtime.verify.measure_artifact", lambda *_: runs(9.0))
    folder = with_budget(artifact, tmp_path / "net", target="local", budget={"energy_mj": 2.0})
    result = mpq("verify", folder, "--json")
    assert (result.code, result.json["kept"]) == (1, None)
    assert result.json["not_checked"] == {"energy_mj": 2.0}


def test_run(mpq: Mpq, artifact: Path, place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    result = mpq("run", artifact, "--data", place / "data.npz", "-o", output, "--json")
    assert result.code == 0
    assert result.json["outputs"] == [{"name": "output0", "shape": [16, 4], "dtype": "float32"}]
    scores = np.load(output)["output0"]
    labels = np.load(place / "data.npz")["labels"]
    assert result.json["top1_percent"] == 100 * (scores.argmax(1) == labels).mean()
    assert "top-1" in mpq("run", artifact, "--data", place / "data.npz").out


def test_labels_of_other_classes_give_no_top1(
    mpq: Mpq, artifact: Path, place: Path, tmp_path: Path
) -> None:
    arrays = dict(np.load(place / "data.npz"))
    arrays["labels"] = np.arange(len(arrays["labels"]))
    np.savez(tmp_path / "other.npz", **arrays)
    result = mpq("run", artifact, "--data", tmp_path / "other.npz")
    assert "no top-1: labels from 0 to 15, scores of 4 classes" in result.out
    result = mpq("run", artifact, "--data", tmp_path / "other.npz", "--json")
    assert (result.code, result.json["top1_percent"]) == (0, None)


def test_export(mpq: Mpq, artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "native"
    result = mpq("export", artifact, "--native", folder, "--json")
    assert result.code == 0
    assert result.json["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert (folder / "network.so").read_bytes() == (artifact / "network.so").read_bytes()
    assert "network.txt" in mpq("export", artifact, "--native", folder).out
    (folder / "network.txt").unlink()
    assert mpq("export", artifact, "--native", folder).code == 2
    (tmp_path / "file").write_text("", encoding="utf-8")
    below = mpq("export", artifact, "--native", tmp_path / "file" / "net", "--json")
    assert (below.code, below.json["where"]) == (2, str(tmp_path / "file" / "net"))
    assert below.json["message"] == "the folder cannot be written"


def test_run_imports_no_torch(fresh: Mpq, artifact: Path, place: Path) -> None:
    words = ["run", str(artifact), "--data", str(place / "data.npz"), "--json"]
    result = fresh(
        "-c",
        "import sys; from mpq_compile.cli import execute\n"
        f"code = execute({words!r})\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)",
    )
    assert (result.code, result.err) == (0, "")
    assert result.json["samples"] == 16


def test_run_refuses_wrong_shapes(mpq: Mpq, artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 3, 9, 8), np.float32))
    result = mpq("run", artifact, "--data", tmp_path / "x.npz", "--json")
    assert result.code == 2
    assert "[1, 3, 8, 8]" in result.json["expected"]


def test_run_refuses_more_arrays_than_inputs(mpq: Mpq, artifact: Path, tmp_path: Path) -> None:
    images = np.zeros((4, 3, 8, 8), np.float32)
    np.savez(tmp_path / "x.npz", z=images, x=images)
    result = mpq("run", artifact, "--data", tmp_path / "x.npz", "--json")
    assert (result.code, result.json["error"]) == (2, "CalibrationError")
    assert "arrays x," in result.json["expected"] and result.json["found"] == "z, x"


def test_run_refuses_nan(mpq: Mpq, artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.full((2, 3, 8, 8), np.nan, np.float32))
    result = mpq("run", artifact, "--data", tmp_path / "x.npz", "--json")
    assert (result.code, result.json["error"]) == (2, "CalibrationError")


@pytest.mark.parametrize("name", ["weights.bin", "network.so", "plan.json", "manifest.json"])
def test_damage_is_named(mpq: Mpq, artifact: Path, place: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    for words in (["run", copy, "--data", place / "data.npz"], ["verify", copy], ["explain", copy]):
        result = mpq(*words, "--json")
        assert (result.code, result.json["error"]) == (2, "ArtifactError")
        assert name in result.json["where"]
        assert "hash" in result.json["expected"] or "sha256" in result.json["expected"]


def test_not_an_artifact(mpq: Mpq, tmp_path: Path) -> None:
    for verb in (["verify"], ["explain"]):
        result = mpq(*verb, tmp_path, "--json")
        assert (result.code, result.json["message"]) == (2, "not an artifact")


def test_explain_an_artifact(mpq: Mpq, artifact: Path) -> None:
    result = mpq("explain", artifact)
    assert result.code == 0
    assert "computes in" in result.out
    assert mpq("explain", artifact, "--json").json["audit"]
