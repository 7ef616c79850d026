"""DataLoaders and Datasets of PyTorch: what is read, and that the seed alone decides."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from networks import X, Y, fixed_network, network, two_inputs
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from mpq_compile.data.batches import read_data
from mpq_compile.data.wanted import DRAWN
from mpq_compile.errors import CalibrationError


class Rows(Dataset):
    """What a function makes of each index."""

    def __init__(self, count: int, make: Any) -> None:
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.randn(3, 6, 6)


def images_of(data: Any, **options: Any) -> Tensor:
    return torch.cat([batch.inputs[0] for batch in read_data(data, network(), **options).batches])


def labels_of(data: Any, **options: Any) -> list[int] | None:
    batches = read_data(data, network(), **options).batches
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return torch.cat(labels).tolist() if labels else None


@pytest.mark.parametrize(
    "row",
    [
        lambda i: (X[i], int(Y[i])),
        lambda i: (X[i], Y[i]),
        lambda i: ((X[i],), Y[i]),
        lambda i: {"input": X[i], "labels": Y[i]},
        lambda i: {"image": X[i].numpy(), "label": np.int64(Y[i])},
    ],
)
def test_samples_with_labels_in_any_form(row: Any) -> None:
    labels = labels_of(Rows(40, row))
    assert labels is not None and sorted(labels) == Y.tolist()
    assert torch.equal(images_of(Rows(40, row)), X[labels])


@pytest.mark.parametrize("row", [lambda i: X[i], lambda i: (X[i],), lambda i: {"x": X[i]}])
def test_samples_without_labels(row: Any) -> None:
    assert labels_of(Rows(40, row)) is None
    assert len(images_of(Rows(40, row))) == 40


def test_a_data_set_is_drawn_from_by_the_seed() -> None:
    data = TensorDataset(X.repeat(10, 1, 1, 1), torch.arange(400))
    first = labels_of(data, samples=50, seed=3)
    assert first is not None and len(set(first)) == 50
    assert first == labels_of(data, samples=50, seed=3) != labels_of(data, samples=50, seed=4)
    assert len(images_of(data)) == DRAWN
    assert f"{DRAWN} of 400 samples" in read_data(data, network()).what


def test_an_endless_data_set_ends() -> None:
    assert len(images_of(Endless(), samples=37)) == 37
    assert torch.equal(images_of(Endless(), samples=9), images_of(Endless(), samples=9))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_shuffles_yields_the_same_for_a_seed(workers: int) -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, num_workers=workers)
    torch.manual_seed(123)
    first = labels_of(loader, seed=1)
    torch.manual_seed(456)
    assert first == labels_of(loader, seed=1)
    assert first != labels_of(loader, seed=2)
    assert first is not None and sorted(first) == Y.tolist()


def test_augmentations_yield_the_same_for_a_seed() -> None:
    def noisy(index: int) -> Tensor:
        return X[index] + torch.randn(1) + float(np.random.rand()) + random.random()

    loader = DataLoader(Rows(40, noisy), batch_size=8)
    assert torch.equal(images_of(loader, seed=1), images_of(loader, seed=1))
    assert not torch.equal(images_of(loader, seed=1), images_of(loader, seed=2))


def test_the_users_generators_go_on_as_if_nothing_had_been_read() -> None:
    def drawn(read: bool) -> tuple[float, float, float]:
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        if read:
            images_of(DataLoader(X, batch_size=8, shuffle=True))
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    assert drawn(read=True) == drawn(read=False)


def test_a_loader_of_mappings() -> None:
    rows = Rows(6, lambda i: {"facts": torch.ones(5), "pixels": X[i], "labels": i, "more": i})
    batches = read_data(DataLoader(rows, batch_size=3), two_inputs()).batches
    assert [tuple(value.shape) for value in batches[0].inputs] == [(3, 3, 6, 6), (3, 5)]
    assert batches[1].labels is not None and batches[1].labels.tolist() == [3, 4, 5]


def test_a_loader_is_read_as_far_as_samples_ask() -> None:
    batches = read_data(DataLoader(X, batch_size=16), network(), samples=20).batches
    assert [len(batch.inputs[0]) for batch in batches] == [16, 4]


def test_images_of_pillow_become_the_models_input() -> None:
    rows = Rows(3, lambda i: (Image.new("L", (12, 9), 100 * i), i))
    data = read_data(rows, network())
    (batch,) = data.batches
    assert batch.inputs[0].shape == (3, 3, 6, 6)
    assert batch.labels is not None
    assert torch.allclose(batch.inputs[0].mean((1, 2, 3)) * 2.55, batch.labels.float())
    assert "scaled to [0, 1]" in data.notes[0]


def test_a_fixed_batch_gets_whole_batches() -> None:
    data = read_data(TensorDataset(X[:7], Y[:7]), fixed_network())
    assert [len(batch.inputs[0]) for batch in data.batches] == [2, 2, 2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (lambda i: X[i : i + 1], "wrong shape of a sample"),
        (lambda i: "text", "wrong shape of a sample"),
        (lambda i: (X[i], X[i], X[i]), "does not fit the model's inputs"),
        (lambda i: {"a": X[i], "b": X[i]}, "columns do not tell"),
        (lambda i: (X[i], "cat"), "labels are not numbers"),
        (lambda i: (X[i].double(), 1), "wrong input dtype"),
        (lambda i: (X[i] / 0, 1), "not finite"),
    ],
)
def test_refused_samples(row: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as caught:
        read_data(Rows(4, row), network())
    assert caught.value.where is not None and caught.value.remedy is not None


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(CalibrationError, match="empty"):
        read_data(TensorDataset(X[:0]), network())
