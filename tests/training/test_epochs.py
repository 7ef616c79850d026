"""What is trained on: a data set is pooled by its samples, a loader taken as it comes."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mpq_compile.capture import capture
from mpq_compile.passes.network import Network, prepare
from mpq_compile.training.epochs import read_epochs

X, Y = torch.randn(12, 3, 6, 6), torch.arange(12)


@cache
def network() -> Network:
    return prepare(capture(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), X[:1]))


def labels(data: object, epoch: int, **options: int) -> list[list[int]]:
    epochs = read_epochs(data, network(), batch_size=4, seed=0, **options)
    return [b.labels.tolist() for b in epochs.epoch(epoch) if b.labels is not None]


def test_a_data_set_is_pooled_and_shuffled() -> None:
    first, second = (labels(TensorDataset(X, Y), epoch) for epoch in (0, 1))
    assert [len(batch) for batch in first] == [4, 4, 4]
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == Y.tolist()
    assert first != second


def test_samples_bound_a_data_set() -> None:
    drawn = sum(labels(TensorDataset(X, Y), 0, samples=8), [])
    assert len(set(drawn)) == 8
    assert sorted(drawn) == sorted(sum(labels(TensorDataset(X, Y), 1, samples=8), []))


def test_a_loader_is_taken_as_it_comes() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=5)
    assert [len(batch) for batch in labels(loader, 0)] == [5, 5, 2]
