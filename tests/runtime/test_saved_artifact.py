"""Artifacts: saved whole, checked byte by byte, run without torch in a fresh process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from operator_nets import CASES

import mpq_compile as mpq
from mpq_compile.runtime import artifact
from mpq_compile.runtime.history import Comparison, History, read_history, write_history
from mpq_compile.runtime.timing import Timings
from mpq_compile.runtime.verify import judge

ROOT = Path(__file__).resolve().parents[2]
FILES = ("network.so", "weights.bin", "plan.json", "manifest.json")

WITHOUT_TORCH = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is blocked")

sys.meta_path.insert(0, Block())
import numpy as np
import mpq_compile as mpq
network = mpq.load(sys.argv[1])
inputs = np.load(sys.argv[2])
outputs = network(*(inputs[name] for name in inputs))
np.savez(sys.argv[3], *(outputs if isinstance(outputs, tuple) else (outputs,)))
assert not {"torch", "tvm"} & set(sys.modules)
"""

# A process that has loaded the runtime alone may compile later.
LOAD_THEN_COMPILE = """
import sys
import numpy as np
import mpq_compile as mpq
loaded = mpq.load(sys.argv[1])
x = np.load(sys.argv[2])["arr_0"]
before = loaded(x)
assert not {"torch", "tvm"} & set(sys.modules)

import torch
image = torch.from_numpy(x)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(image[0].numel(), 4))
network = mpq.assign(model, image, [image], "w8a8")
assert "tvm" in sys.modules
assert torch.equal(network(image), network.reference(image))
assert np.array_equal(loaded(x), before)
assert np.array_equal(loaded(image).numpy(), before)
"""


@cache
def network_of(name: str, candidate: str = "w4a8") -> mpq.CompiledNetwork:
    case = CASES[name]
    return mpq.assign(case.model(), case.inputs(1), [case.inputs(16, seed=1)], candidate)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return network_of("mobile").save(tmp_path / "net")


def test_an_artifact_is_four_files(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    assert network_of("mobile").size_bytes == (saved / "weights.bin").stat().st_size


def test_a_loaded_network_gives_the_same_bits(saved: Path) -> None:
    network, loaded = network_of("mobile"), mpq.load(saved)
    (x,) = CASES["mobile"].inputs(5, seed=3)
    assert torch.equal(loaded(x), network(x))
    assert loaded.plan.assignment == network.plan.assignment
    assert list(loaded.audit) == list(network.audit)
    assert loaded.verification is None


def test_a_loaded_network_has_no_reference(saved: Path) -> None:
    with pytest.raises(mpq.MpqError, match="no PyTorch reference") as caught:
        mpq.load(saved).reference  # noqa: B018
    assert "mpq.assign" in str(caught.value.remedy)


def run_fresh(script: str, *arguments: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=arguments[0].parent,
    )
    assert done.returncode == 0, done.stderr


def run_without_torch(folder: Path, inputs: list[np.ndarray], work: Path) -> list[np.ndarray]:
    given, found = work / "inputs.npz", work / "outputs.npz"
    np.savez(given, *inputs)
    run_fresh(WITHOUT_TORCH, folder, given, found)
    arrays = np.load(found)
    return [arrays[name] for name in arrays]


@pytest.mark.parametrize("name", ["mobile", "two_inputs"])
def test_a_fresh_process_without_torch_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    network, inputs = network_of(name), CASES[name].inputs(3, seed=4)
    folder = network.save(tmp_path / "net")
    found = run_without_torch(folder, [x.numpy() for x in inputs], tmp_path)
    expected = network(*(x.numpy() for x in inputs))
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a, b)


def test_a_process_that_loaded_an_artifact_can_compile(saved: Path, tmp_path: Path) -> None:
    (x,) = CASES["mobile"].inputs(2, seed=4)
    np.savez(tmp_path / "inputs.npz", x.numpy())
    run_fresh(LOAD_THEN_COMPILE, saved, tmp_path / "inputs.npz")


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int((len(data) - 1) * place)] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("place", [0.0, 0.37, 0.9])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(saved: Path, name: str, place: float) -> None:
    flip(saved / name, place)
    with pytest.raises(mpq.ArtifactError, match="damaged") as caught:
        mpq.load(saved)
    assert str(saved / name) in str(caught.value.where)
    assert "again" in str(caught.value.remedy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(mpq.ArtifactError) as caught:
        mpq.load(saved)
    assert caught.value.found == "no such file" and caught.value.remedy


def test_a_cut_file_is_found(saved: Path) -> None:
    path = saved / "weights.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(mpq.ArtifactError, match="damaged"):
        mpq.load(saved)


def test_another_version_is_refused(saved: Path) -> None:
    path = saved / "manifest.json"
    body = json.loads(path.read_text())
    body["version"] = artifact.VERSION + 1
    body["sha256"] = artifact._digest(body)
    path.write_text(json.dumps(body))
    with pytest.raises(mpq.ArtifactError, match="another version") as caught:
        mpq.load(saved)
    assert caught.value.found == str(artifact.VERSION + 1)
    assert "compile" in str(caught.value.remedy)


def test_a_folder_without_manifest_is_no_artifact(tmp_path: Path) -> None:
    for folder, found in ((tmp_path, "no such file"), (tmp_path / "none", "no such folder")):
        with pytest.raises(mpq.ArtifactError, match="not an artifact") as caught:
            mpq.load(folder)
        assert caught.value.found == found


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path, tmp_path / "file"):
        with pytest.raises(mpq.ArtifactError, match="something else") as caught:
            network_of("mobile").save(target)
        assert caught.value.remedy == "choose another folder"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_artifact_or_an_empty_folder_is_replaced(saved: Path, tmp_path: Path) -> None:
    (saved / "stale").write_text("")
    network_of("two_inputs").save(saved)
    assert not (saved / "stale").exists()
    assert set(mpq.load(saved).plan.assignment) == set(network_of("two_inputs").plan.assignment)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert mpq.load(network_of("mobile").save(empty))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_network_can_be_saved_over_itself(saved: Path) -> None:
    loaded = mpq.load(saved)
    loaded.save(saved)
    assert mpq.load(saved).plan.assignment == loaded.plan.assignment


def test_copies_do_not_depend_on_the_original(saved: Path, tmp_path: Path) -> None:
    loaded = mpq.load(saved)
    shutil.copytree(saved, tmp_path / "copy")
    shutil.rmtree(saved)
    (x,) = CASES["mobile"].inputs(2, seed=3)
    assert torch.equal(mpq.load(tmp_path / "copy")(x), loaded(x))


def test_a_verification_stays_beside_the_artifact(saved: Path, tmp_path: Path) -> None:
    timings = Timings(
        latencies_ms=[[[1.0, 1.1, 1.3]] * 2],
        reference_ms=[1.0, 1.0],
        usual_ms=1.0,
        repeated=0,
        energy_mj=[None],
        memory_bytes=4096,
    )
    measured = judge([timings], {"latency_ms": 2.0})
    loaded = mpq.load(saved)
    loaded.verification = measured
    again = mpq.load(loaded.save(tmp_path / "verified"))
    assert again.verification == measured
    (tmp_path / "verified" / "verification.json").write_text("{")
    with pytest.raises(mpq.ArtifactError, match="verification") as caught:
        mpq.load(tmp_path / "verified")
    assert "delete the file" in str(caught.value.remedy)


def test_a_history_stays_beside_the_artifact(saved: Path, tmp_path: Path) -> None:
    row = Comparison(
        kind="round",
        name="round 1",
        predicted_ms=1.0,
        predicted_ms_lower95=0.9,
        predicted_ms_upper95=1.1,
        measured_ms=1.05,
        measured_ms_lower95=1.0,
        measured_ms_upper95=1.1,
        status="accepted",
    )
    assert read_history(saved) is None
    write_history(saved, History(comparisons=(row,), time="2030-01-01T00:00:00+00:00"))
    copy = mpq.load(saved).save(tmp_path / "copy")
    assert (
        read_history(copy)
        == read_history(saved)
        == History(comparisons=(row,), time="2030-01-01T00:00:00+00:00")
    )
    for text in ("{", "[]", '{"version": 99, "comparisons": []}', '{"version": 1}'):
        (copy / "history.json").write_text(text)
        with pytest.raises(mpq.ArtifactError, match="history") as caught:
            read_history(copy)
        assert "delete the file" in str(caught.value.remedy)


def test_a_tier_that_this_cpu_lacks_is_refused(saved: Path) -> None:
    path = saved / "manifest.json"
    body = json.loads(path.read_text())
    body["tier"] = "neon"
    body["sha256"] = artifact._digest(body)
    path.write_text(json.dumps(body))
    with pytest.raises(mpq.DeviceError, match="does not execute") as caught:
        mpq.load(saved)
    assert "MPQ_TIER" in str(caught.value.remedy)


def test_the_same_network_gives_the_same_weights_and_plan(tmp_path: Path) -> None:
    case = CASES["two_inputs"]
    folders = []
    for index in range(2):
        network = mpq.assign(case.model(), case.inputs(1), [case.inputs(16, seed=1)], "w4a8")
        folders.append(network.save(tmp_path / str(index)))
    for name in ("weights.bin", "plan.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
