"""`examples/cpp`: exported networks run without Python and give the same bits."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import emulated_device
import numpy as np
import pytest
import torch
from decoder_nets import Size, make
from operator_nets import CASES
from torch import nn
from torch.utils import _pytree as pytree

import mpq_compile as mpq
from mpq_compile.capture import capture
from mpq_compile.errors import ArtifactError
from mpq_compile.passes.network import prepare

SOURCES = Path(__file__).resolve().parents[2] / "examples" / "cpp"
COMPILERS = shutil.which("c++") or importlib.util.find_spec("ziglang")

pytestmark = pytest.mark.skipif(
    not COMPILERS, reason="no C++ compiler: needs c++, or `pip install ziglang`"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built by its own script."""
    path = tmp_path_factory.mktemp("cpp") / "run_artifact"
    build(path)
    return path


def build(path: Path, **variables: str) -> None:
    """Run the example's own script."""
    given = {"PYTHON": sys.executable, "CXXFLAGS": "-Werror"}
    done = subprocess.run(
        [SOURCES / "build.sh", path],
        env=os.environ | given | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@cache
def assigned(name: str, *candidates: str) -> tuple[mpq.CompiledNetwork, tuple[torch.Tensor, ...]]:
    """Build a network of the battery, its sites taking turns with the candidates."""
    case = CASES[name]
    model, inputs, batches = case.model(), case.inputs(2), [case.inputs(8, seed=1)]
    sites = prepare(capture(model, inputs)).sites
    turns = {site.id: candidates[i % len(candidates)] for i, site in enumerate(sites)}
    return mpq.assign(model, inputs, batches, turns), inputs


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network's folder, with an input beside it."""
    folder = tmp_path_factory.mktemp("exported")
    network, (x,) = assigned("padded", "w8a8")
    np.save(folder / "x.npy", x.numpy())
    return network.export_native(folder / "net")


def run(program: Path, *words: object, env: dict[str, str] | None = None):
    return subprocess.run(
        [program, *map(str, words)], capture_output=True, text=True, env=os.environ | (env or {})
    )


@pytest.mark.parametrize(
    "name,candidates,tensors",
    [
        ("padded", ("w8a8",), (1, 1)),
        ("mobile", ("w4a8", "bf16", "w8a8", "fp32", "w3a8"), (1, 1)),
        ("two_inputs", ("w8a8", "w4a8"), (2, 2)),
        ("shapes", ("w8a8",), (1, 4)),
    ],
)
def test_it_computes_what_python_computes(
    program: Path,
    tmp_path: Path,
    name: str,
    candidates: tuple[str, ...],
    tensors: tuple[int, int],
) -> None:
    network, inputs = assigned(name, *candidates)
    outputs = assert_same(program, tmp_path, network, inputs)
    assert (len(inputs), len(outputs)) == tensors


def test_a_cache_is_given_back_changed(program: Path, tmp_path: Path) -> None:
    size = Size(width=32, layers=1, heads=2, shared=2, vocabulary=40, cache=8)
    samples = [size.step(seed, seed) for seed in range(2)]
    network = mpq.assign(make("gpt", size), samples[0], samples, "w8a8")
    assert network.manifest.updates == {1: 2, 2: 3}
    assert_same(program, tmp_path, network, size.step(5, 4))


def assert_same(
    program: Path,
    tmp_path: Path,
    network: mpq.CompiledNetwork,
    inputs: tuple[torch.Tensor, ...],
) -> list[torch.Tensor]:
    """Run a network in both ways; return what it gives."""
    network.export_native(tmp_path / "net")
    files = [tmp_path / f"x{index}.npy" for index in range(len(inputs))]
    for file, value in zip(files, inputs, strict=True):
        np.save(file, value.numpy())
    done = run(program, tmp_path / "net", *files, "--out", tmp_path / "y")
    assert done.returncode == 0, done.stderr
    outputs = pytree.tree_leaves(network(*inputs))
    for index, expected in enumerate(outputs):
        found = np.load(tmp_path / f"y{index}.npy")
        assert found.dtype == expected.numpy().dtype and found.shape == tuple(expected.shape)
        assert found.tobytes() == expected.numpy().tobytes()
    assert not (tmp_path / f"y{index + 1}.npy").exists()
    return outputs


@pytest.mark.parametrize("threads", ["1", "2", "4"])
def test_any_number_of_threads_gives_the_same(
    program: Path, exported: Path, tmp_path: Path, threads: str
) -> None:
    x = exported.parent / "x.npy"
    words = (exported, x, "--out", tmp_path / "y", "--repeat", "5")
    done = run(program, *words, env={"TVM_NUM_THREADS": threads})
    assert done.returncode == 0, done.stderr
    assert re.search(r"median of 5 calls: [\d.]+ ms", done.stdout)
    network, inputs = assigned("padded", "w8a8")
    assert np.array_equal(np.load(tmp_path / "y0.npy"), network(*inputs).numpy())


@pytest.mark.parametrize("name", ["network.so", "parameters.bin"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "longer"])
def test_damage_is_found(
    program: Path, exported: Path, tmp_path: Path, name: str, damage: str
) -> None:
    shutil.copytree(exported, tmp_path / "net")
    content = bytearray((tmp_path / "net" / name).read_bytes())
    content[len(content) // 2] ^= damage == "flipped"
    content = content[:-1] if damage == "cut" else content + b"\0" * (damage == "longer")
    (tmp_path / "net" / name).write_bytes(content)
    done = run(program, tmp_path / "net", exported.parent / "x.npy")
    assert done.returncode == 2
    assert name in done.stderr and ("damaged" in done.stderr or "ends before" in done.stderr)


WRONG_INPUTS = {
    "shape": (
        np.zeros((2, 3, 10, 9), np.float32),
        r"<f4\(2, 3, 10, 10\), found <f4\(2, 3, 10, 9\)",
    ),
    "dtype": (np.zeros((2, 3, 10, 10)), r"found <f8"),
    "order": (np.asfortranarray(np.zeros((2, 3, 10, 10), np.float32)), "Fortran order"),
    "bytes": (np.zeros((2, 3, 10, 10), ">f4"), r"found >f4"),
}


@pytest.mark.parametrize("kind", WRONG_INPUTS)
def test_wrong_inputs_are_refused(program: Path, exported: Path, tmp_path: Path, kind: str) -> None:
    array, message = WRONG_INPUTS[kind]
    np.save(tmp_path / "x.npy", array)
    done = run(program, exported, tmp_path / "x.npy")
    assert done.returncode == 2 and re.search(message, done.stderr)


def test_a_missing_input_and_a_file_of_another_kind_are_refused(
    program: Path, exported: Path
) -> None:
    assert "expected 1 inputs, found 0" in run(program, exported).stderr
    done = run(program, exported, exported / "network.txt")
    assert done.returncode == 2 and "no .npy file" in done.stderr


def test_a_cpu_without_the_instructions_is_refused(
    program: Path, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "net")
    text = (tmp_path / "net" / "network.txt").read_text(encoding="ascii")
    text = re.sub("^flags.*$", "flags teleport", text, flags=re.MULTILINE)
    (tmp_path / "net" / "network.txt").write_text(text, encoding="ascii")
    done = run(program, tmp_path / "net", exported.parent / "x.npy")
    assert done.returncode == 2 and "this CPU lacks teleport" in done.stderr


def test_headers_of_version_2_are_read(program: Path, exported: Path, tmp_path: Path) -> None:
    x = np.load(exported.parent / "x.npy")
    with open(tmp_path / "x.npy", "wb") as stream:
        np.lib.format.write_array(stream, x, version=(2, 0))
    done = run(program, exported, tmp_path / "x.npy", "--out", tmp_path / "y")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "y0.npy"), assigned("padded", "w8a8")[0](x))


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 6)

    def forward(self, x):
        return torch.sort(self.fc(x))[0]


def test_networks_of_the_virtual_machine_are_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 8)
    network = mpq.assign(Sorted().eval(), x, [x], "w8a8", allow_float=True)
    assert network.manifest.arena is None
    with pytest.raises(ArtifactError, match="no native form"):
        network.export_native(tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_other_folders_are_kept_and_exports_replaced(exported: Path, tmp_path: Path) -> None:
    network, _ = assigned("tied", "w8a8")
    (tmp_path / "thesis.tex").write_text("", encoding="utf-8")
    with pytest.raises(ArtifactError, match="something else"):
        network.export_native(tmp_path)
    shutil.copytree(exported, tmp_path / "net")
    network.export_native(tmp_path / "net")
    assert "input <f4 2 8" in (tmp_path / "net" / "network.txt").read_text(encoding="ascii")


@pytest.mark.emulated
def test_both_are_built_here_and_run_on_aarch64(tmp_path: Path) -> None:
    """Cross-compiled network, cross-compiled program, and no Python on the device."""
    if reason := emulated_device.not_set_up():
        pytest.skip(reason)
    device, case = emulated_device.folder(), CASES["mobile"]
    (x,) = case.inputs(2, seed=3)
    network = mpq.assign(
        case.model(), case.inputs(2), [case.inputs(8)], "w4a8", target="aarch64_i8mm"
    )
    network.export_native(tmp_path / "net")
    np.save(tmp_path / "x.npy", x.numpy())
    compiler = f"{sys.executable} -m ziglang c++ -target aarch64-linux-gnu.2.28"
    paths = os.pathsep.join([str(device / "site"), *sys.path])
    build(tmp_path / "program", CXX=compiler, PYTHONPATH=paths)
    words = [*emulated_device.script().command(device, "max", tmp_path / "program"), "net", "x.npy"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "output0.npy")
    assert np.array_equal(found, network.reference(x).numpy())
