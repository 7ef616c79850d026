"""Other batches than the compiled one, from one thread and from several."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from operator_nets import CASES
from torch.utils import _pytree as pytree

import mpq_compile as mpq
from mpq_compile.runtime.executor import slice_starts

COMPILED = 4
BATCHES = (1, 3, 4, 5, 8, 11, 17)


@cache
def network_of(name: str) -> mpq.CompiledNetwork:
    case = CASES[name]
    return mpq.assign(case.model(), case.inputs(COMPILED), [case.inputs(16, seed=1)], "w8a8")


@cache
def samples_of(name: str) -> tuple[tuple[torch.Tensor, ...], list[torch.Tensor]]:
    """Return inputs of the largest batch and the oracle's outputs, flat."""
    inputs = CASES[name].inputs(max(BATCHES), seed=2)
    return inputs, pytree.tree_leaves(network_of(name).reference(*inputs))


def outputs_equal(found: Any, expected: list[torch.Tensor], samples: slice) -> bool:
    """Tell whether the outputs of some samples are the oracle's, bit for bit."""
    leaves = [torch.as_tensor(leaf) for leaf in pytree.tree_leaves(found)]
    pairs = zip(leaves, expected, strict=True)
    return all(torch.equal(leaf, whole[samples]) for leaf, whole in pairs)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", ["mobile", "two_inputs"])
def test_any_batch_equals_the_oracle(name: str, batch: int) -> None:
    network, (inputs, expected) = network_of(name), samples_of(name)
    part = [x[:batch] for x in inputs]
    assert outputs_equal(network(*part), expected, slice(batch))
    arrays = [x.numpy() for x in part]
    found = network(*arrays)
    assert all(isinstance(leaf, np.ndarray) for leaf in pytree.tree_leaves(found))
    assert outputs_equal(found, expected, slice(batch))


def test_samples_of_any_layout_and_alignment() -> None:
    network, ((x,), expected) = network_of("mobile"), samples_of("mobile")
    backwards = x.flip(0).numpy()[::-1]
    assert outputs_equal(network(backwards[3:14]), expected, slice(3, 14))
    assert outputs_equal(network(x.to(memory_format=torch.channels_last)[1:10]), expected,
                         slice(1, 10))  # fmt: skip


def test_inputs_are_left_alone() -> None:
    network, ((x,), _) = network_of("mobile"), samples_of("mobile")
    for batch in (3, 11):
        part = x[:batch].clone()
        network(part)
        assert torch.equal(part, x[:batch])


def test_results_are_the_callers_own() -> None:
    """A later call writes over nothing that an earlier one gave."""
    network, ((x,), expected) = network_of("mobile"), samples_of("mobile")
    first = network(x[:11])
    network(x[6:17])
    assert outputs_equal(first, expected, slice(11))
    first.zero_()
    assert outputs_equal(network(x[:11]), expected, slice(11))


def test_several_threads_with_batches_of_their_own() -> None:
    network, ((x,), expected) = network_of("mobile"), samples_of("mobile")
    wrong: list[tuple[int, int]] = []
    start = threading.Barrier(6)

    def call(index: int) -> None:
        start.wait()
        for turn in range(12):
            first, batch = (index + turn) % 6, BATCHES[(index + turn) % len(BATCHES)]
            part: Any = x[first : first + batch]
            samples = slice(first, first + len(part))
            if not outputs_equal(network(part.numpy() if turn % 2 else part), expected, samples):
                wrong.append((index, turn))

    threads = [threading.Thread(target=call, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_slices_cover_every_sample_with_whole_slices() -> None:
    assert slice_starts(4, 4) == [0]
    assert slice_starts(8, 4) == [0, 4]
    assert slice_starts(9, 4) == [0, 4, 5]
