"""Data and models: what is read, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from verbs import Mpq

from mpq_compile.commands.model import read_model
from mpq_compile.commands.options import Images
from mpq_compile.commands.reading import read_plan
from mpq_compile.commands.request import load, read_budget, read_candidates, read_constraints
from mpq_compile.data.npz import read_npz
from mpq_compile.errors import CalibrationError, CaptureError, PlanError


def test_arrays_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, second=np.zeros((3, 2)), labels=np.arange(3), first=np.ones((3, 1), np.int64))
    data = read_npz(path)
    assert list(data.inputs) == ["second", "first"]
    assert data.count == 3
    assert data.labels is not None


def test_foreign_byte_order_is_converted(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(3, dtype=">f4"))
    array = read_npz(tmp_path / "x.npz").inputs["x"]
    assert array.dtype == np.dtype("float32")
    assert array.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds no input"),
        ({"labels": np.zeros(3)}, "holds no input"),
        ({"x": np.array([{}, []], object)}, "cannot be read"),
        ({"x": np.array(["a", "b"])}, "does not hold numbers"),
        ({"x": np.zeros((), np.float32)}, "no samples"),
        ({"x": np.zeros((0, 3), np.float32)}, "no samples"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, "different numbers of samples"),
        ({"x": np.zeros(3), "labels": np.zeros(4)}, "different numbers of samples"),
    ],
)
def test_refused_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match=message):
        read_npz(tmp_path / "x.npz")


def test_nan_is_refused_with_its_sample(tmp_path: Path) -> None:
    images = np.zeros((5, 2), np.float32)
    images[3, 1] = np.nan
    np.savez(tmp_path / "x.npz", x=images)
    with pytest.raises(CalibrationError, match="not finite") as caught:
        read_npz(tmp_path / "x.npz")
    assert "sample 3" in str(caught.value.found)


def test_refused_files(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no such file"):
        read_npz(tmp_path / "none.npz")
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(CalibrationError, match=r"\.npy"):
        read_npz(tmp_path / "x.npy")
    (tmp_path / "text.npz").write_text("text", encoding="utf-8")
    with pytest.raises(CalibrationError, match="another kind of file"):
        read_npz(tmp_path / "text.npz")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).standard_normal(1000))
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_npz(path)


TWO = """
from torch import nn


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, left, right, scale=None):
        return self.a(left) + self.b(right)
"""


@pytest.mark.parametrize("names", [("right", "left"), ("left", "right"), ("first", "second")])
def test_arrays_go_to_arguments_by_name_or_by_order(
    mpq: Mpq, tmp_path: Path, names: tuple[str, str]
) -> None:
    widths = {"left": 4, "first": 4, "right": 2, "second": 2}
    shapes = {name: (8, widths[name]) for name in names}
    model, path = two_inputs(tmp_path, shapes), tmp_path / "x.npz"
    loaded = load(model, path, Images())
    assert [value.shape[1] for value in loaded.example_inputs] == [4, 2]
    result = mpq(
        *("compile", model, "--data", path, "--candidates", "w8a8", "--no-verify", "--no-tune"),
        *("-o", tmp_path / "a"),
    )
    assert result.code == 0
    np.savez(path, **{name: np.zeros(shapes[name], np.float32) for name in reversed(names)})  # type: ignore[arg-type]
    assert mpq("run", tmp_path / "a", "--data", path).code == (0 if "left" in names else 2)


@pytest.mark.parametrize(
    "names",
    [("left",), ("rigth", "left"), ("left", "scale"), ("left", "right", "scale", "more")],
)
def test_arrays_that_do_not_tell_the_arguments(tmp_path: Path, names: tuple[str, ...]) -> None:
    model = two_inputs(tmp_path, dict.fromkeys(names, (8, 4)))
    with pytest.raises(CalibrationError) as caught:
        load(model, tmp_path / "x.npz", Images())
    assert "left, right" in str(caught.value.expected)
    assert caught.value.found == ", ".join(names)


def two_inputs(folder: Path, shapes: dict[str, tuple[int, int]]) -> str:
    """Write a model of two arguments, and arrays; return the model's name."""
    (folder / "two.py").write_text(TWO, encoding="utf-8")
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    np.savez(folder / "x.npz", **arrays)  # type: ignore[arg-type]
    return f"{folder}/two.py:Two"


def test_the_model_may_bring_its_inputs(place: Path) -> None:
    model, example = read_model(f"{place}/net.py:make_with_inputs")
    assert type(model).__name__ == "Net"
    assert tuple(example.shape) == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("mak", "did you mean 'make'"),
        ("make_text", "did not return a model"),
        ("make_trouble", "the weights are missing"),
    ],
)
def test_refused_factories(place: Path, factory: str, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        read_model(f"{place}/net.py:{factory}")


def test_refused_model_names(place: Path, tmp_path: Path) -> None:
    for name in ("none.py:make", "none.pt2", "net.onnx", f"{place}/data.npz:make"):
        with pytest.raises(CaptureError):
            read_model(name)
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(CaptureError, match="found: a folder"):
        read_model(f"{tmp_path}/net.onnx")
    with pytest.raises(CaptureError, match="FACTORY"):
        read_model(f"{place}/net.py")
    (tmp_path / "bad.py").write_text("def make(:\n", encoding="utf-8")
    with pytest.raises(CaptureError, match="SyntaxError"):
        read_model(f"{tmp_path}/bad.py:make")


def test_plans_are_checked(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"version": 1}', encoding="utf-8")
    with pytest.raises(PlanError, match="not a plan"):
        read_plan(tmp_path / "plan.json")


def test_budgets_must_be_positive() -> None:
    assert read_budget(latency_ms=2.0, size_mb=None).given() == {"latency_ms": 2.0}
    assert read_budget(max_drop=0.0).given() == {"max_drop": 0.0}
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(PlanError) as caught:
            read_budget(latency_p95_ms=value)
        assert caught.value.where == "--latency-p95-ms"


def test_candidates() -> None:
    assert read_candidates(None) is None
    assert read_candidates("w8a8, w4a8") == ["w8a8", "w4a8"]
    for text in ("", ",", "w9a8", "int8"):
        with pytest.raises(PlanError):
            read_candidates(text)


def test_constraints() -> None:
    assert read_constraints(None) == {}
    texts = ["conv=w8a8", "re:a=b.*=w8a8,w4a8"]
    assert read_constraints(texts) == {"conv": ["w8a8"], "re:a=b.*": ["w8a8", "w4a8"]}
    for broken in (["conv"], ["=w8a8"], ["conv="], ["conv=w1"], ["conv=w8a8", "conv=w4a8"]):
        with pytest.raises(PlanError):
            read_constraints(broken)
