"""Batches that users make: arrays, mappings, paths; and how many of them are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import X, Y, fixed_network, network, two_inputs

from mpq_compile.data.batches import in_batches, read_data
from mpq_compile.data.sources import SOURCES
from mpq_compile.errors import CalibrationError


def npz(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "x.npz", **arrays)  # type: ignore[arg-type]
    return folder / "x.npz"


@pytest.mark.parametrize(
    "data",
    [
        X.numpy(),
        [X.numpy()],
        [X[:3].numpy(), X[3:]],
        [(X.numpy(), Y.numpy())],
        [{"input": X.numpy()}],
        iter([X.numpy().astype(">f4")]),
    ],
)
def test_arrays_are_taken_like_tensors(data: Any) -> None:
    batches = read_data(data, network()).batches
    assert torch.equal(torch.cat([batch.inputs[0] for batch in batches]), X)


def test_what_was_read_is_not_what_the_user_writes_to() -> None:
    array = X.numpy().copy()
    (batch, _) = read_data([array], network()).batches
    array[:] = 0
    assert torch.equal(batch.inputs[0], X[:32])


def test_arrays_that_only_can_be_read_give_no_warning() -> None:
    array = X.numpy().copy()
    array.setflags(write=False)
    with np.testing.suppress_warnings() as record:
        read_data([array], network())
    assert not record.log


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X.numpy().astype(np.float64), "wrong input dtype"),
        ([np.array(["a"])], "does not fit"),
        ([np.array([{}], object)], "does not fit"),
        ([{"a": X, "b": X}], "columns do not tell"),
        ({"input": X}, "no calibration data"),
        (b"bytes", "no calibration data"),
        (3, "no calibration data"),
    ],
)
def test_refused_batches(data: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        read_data(data, network())


def test_every_kind_of_data_is_named_where_none_fits() -> None:
    with pytest.raises(CalibrationError) as caught:
        read_data(3, network())
    assert all(kind in str(caught.value.expected) for kind in SOURCES)


def test_a_file_gives_inputs_in_order_and_labels(tmp_path: Path) -> None:
    facts = np.ones((40, 5), np.float32)
    path = npz(tmp_path, a=X.numpy(), labels=Y.numpy(), b=facts)
    for given in (path, str(path)):
        batches = read_data(given, two_inputs()).batches
        assert [len(batch.inputs[0]) for batch in batches] == [32, 8]
        assert batches[0].labels is not None and batches[0].labels.tolist() == list(range(32))


FACTS = np.ones((40, 5), np.float32)


def test_arrays_of_a_file_go_to_inputs_by_name(tmp_path: Path) -> None:
    path = npz(tmp_path, facts=FACTS, labels=Y.numpy(), pixels=X.numpy())
    (first, _) = read_data(path, two_inputs()).batches
    assert torch.equal(first.inputs[0], X[:32]) and first.inputs[1].shape == (32, 5)
    assert first.labels is not None


@pytest.mark.parametrize(
    "names",
    [
        ("facts",),
        ("pixels", "facts", "more"),
        ("facts", "pixel"),  # a name that is misspelt leaves the other in its place
        ("any", "pixels"),
    ],
)
def test_arrays_that_do_not_tell_the_inputs(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(CalibrationError) as caught:
        read_data(npz(tmp_path, **dict.fromkeys(names, FACTS)), two_inputs())
    assert "pixels, facts" in str(caught.value.expected)
    assert caught.value.found == ", ".join(names)


def test_an_array_too_many_for_one_input(tmp_path: Path) -> None:
    for surplus in ({"z": X.numpy(), "input": X.numpy()}, {"input": X.numpy(), "y": Y.numpy()}):
        with pytest.raises(CalibrationError, match="not those of the model's inputs"):
            read_data(npz(tmp_path, **surplus), network())


def test_a_file_of_numpys_default_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"x\.astype\(np\.float32\)"):
        read_data(npz(tmp_path, x=X.numpy().astype(np.float64)), network())


def test_samples_bound_what_is_taken(tmp_path: Path) -> None:
    data = read_data(npz(tmp_path, x=X.numpy()), network(), samples=35)
    assert [len(batch.inputs[0]) for batch in data.batches] == [32, 3]
    for samples, sizes in ((5, [2, 2]), (1, [2])):
        fixed = read_data([X], fixed_network(), samples=samples)
        assert [len(batch.inputs[0]) for batch in fixed.batches] == sizes


def test_a_generator_is_not_read_further_than_needed() -> None:
    seen = []

    def batches() -> Any:
        for part in X.split(10):
            seen.append(len(part))
            yield part

    assert sum(len(b.inputs[0]) for b in read_data(batches(), network(), samples=15).batches) == 15
    assert seen == [10, 10]


def test_samples_are_chosen_by_their_place() -> None:
    batches = read_data([(X, Y)], network()).batches
    chosen = torch.tensor([39, 0, 7])
    (found,) = in_batches(batches, chosen)
    assert torch.equal(found.inputs[0], X[chosen])
    assert found.labels is not None and found.labels.tolist() == [39, 0, 7]
