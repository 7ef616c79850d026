"""Data sets of Hugging Face's: the real ones where the package is there, else what looks alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from networks import X, Y, network, two_inputs
from PIL import Image

from mpq_compile.data.batches import read_data
from mpq_compile.errors import CalibrationError

COLUMNS = {"image": X.tolist(), "label": Y.tolist()}


class Lookalike:
    """Has rows, columns and features, like the real thing."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = columns
        self.column_names, self.features = list(columns), dict.fromkeys(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


class Stream:
    """Like an IterableDataset: its rows can only be gone through."""

    column_names, features = None, None

    def __init__(self, rows: Lookalike) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def made(real: bool, columns: dict[str, list[Any]], stream: bool = False) -> Any:
    if not real:
        found = Lookalike(columns)
        return Stream(found) if stream else found
    package = pytest.importorskip("datasets", reason="the package datasets is not installed")
    whole = package.Dataset.from_dict(columns)
    return whole.to_iterable_dataset() if stream else whole


@pytest.fixture(params=[False, True], ids=["lookalike", "real"])
def real(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_rows_of_numbers(real: bool) -> None:
    batches = read_data(made(real, COLUMNS), network()).batches
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
    images = torch.cat([batch.inputs[0] for batch in batches])
    assert sorted(labels.tolist()) == Y.tolist()
    assert torch.equal(images, X[labels])


def test_a_stream_gives_its_first_rows(real: bool) -> None:
    data = read_data(made(real, COLUMNS, stream=True), network(), samples=10)
    (batch,) = data.batches
    assert batch.labels is not None and batch.labels.tolist() == list(range(10))
    assert "the first samples" in data.what


def test_columns_are_told_by_name(real: bool) -> None:
    columns = {"facts": [[1.0] * 5] * 4, "id": ["a", "b", "c", "d"], "pixels": X[:4].tolist()}
    (batch,) = read_data(made(real, columns), two_inputs()).batches
    assert [value.shape[1:] for value in batch.inputs] == [(3, 6, 6), (5,)]
    assert batch.labels is None


def test_images_are_decoded(real: bool) -> None:
    images = [Image.new("RGB", (9, 7), (40 * i, 0, 0)) for i in range(4)]
    (batch,) = read_data(made(real, {"image": images, "label": [0, 1, 2, 3]}), network()).batches
    assert batch.labels is not None
    red = (batch.inputs[0][:, 0].mean((1, 2)) * 255 / 40).round().long()
    assert torch.equal(red, batch.labels)


def test_other_columns_are_refused_by_name(real: bool) -> None:
    with pytest.raises(CalibrationError, match="columns do not tell") as caught:
        read_data(made(real, {**COLUMNS, "file": ["x"] * 40}), network())
    assert caught.value.found == "image, label, file"


def test_several_splits_are_refused() -> None:
    package = pytest.importorskip("datasets", reason="the package datasets is not installed")
    splits = package.DatasetDict({"train": package.Dataset.from_dict(COLUMNS)})
    with pytest.raises(CalibrationError, match=r"calibration\['train'\]"):
        read_data(splits, network())


@pytest.mark.parametrize("form", ["torch", "numpy"])
@pytest.mark.parametrize("stream", [False, True])
def test_rows_in_other_formats(form: str, stream: bool) -> None:
    data = made(True, COLUMNS, stream).with_format(form)
    batches = read_data(data, network()).batches
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
    assert torch.equal(torch.cat([batch.inputs[0] for batch in batches]), X[labels])
    assert np.unique(labels).size == 40
