"""Decode steps with a KV cache: against the oracle, in place, and against recomputation."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from comparison import BF16_TOLERANCE, FLOAT_TOLERANCE, assert_equal
from decoder_nets import Size, make
from torch import Tensor

import mpq_compile as mpq
from mpq_compile.errors import MpqError
from mpq_compile.lower import build
from mpq_compile.lower.program import NotAProgram
from mpq_compile.pipeline import assign_session
from mpq_compile.recipe import Recipe
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.session import Session

SIZES = {
    "gpt": Size(width=64, layers=2, heads=4, shared=4, vocabulary=96, cache=24),
    "llama": Size(width=64, layers=2, heads=4, shared=2, vocabulary=96, cache=24),
}
TOLERANCE = {"fp32": FLOAT_TOLERANCE}
# Codes and scales that depend on the weights alone: every length of a prompt has the same ones.
RECIPE = Recipe(rounding="nearest", correction="none")


@cache
def session(kind: str, tokens: int = 1) -> Session:
    size = SIZES[kind]
    samples = [size.step(seed, 3 * seed, tokens) for seed in range(2)]
    return Session(make(kind, size), size.step(7, 4, tokens), samples, recipe=RECIPE)


@cache
def network(kind: str, candidate: str, tokens: int = 1) -> CompiledNetwork:
    return assign_session(session(kind, tokens), candidate)


@pytest.mark.parametrize("candidate", ["fp32", "w8a8", "w4a16", "w4a16g32", "w8a8d"])
@pytest.mark.parametrize("kind", SIZES)
def test_a_step_equals_the_oracle(kind: str, candidate: str) -> None:
    net, inputs = network(kind, candidate), SIZES[kind].step(3, 9)
    found, expected = net(*inputs), net.reference(*inputs)
    assert_equal(found, expected, TOLERANCE.get(candidate, BF16_TOLERANCE))
    assert net.manifest.notes == [] and net.manifest.arena is not None  # one function, scheduled
    assert any(row.site.startswith("head:") for row in net.audit)


@pytest.mark.parametrize("kind", SIZES)
def test_a_step_of_fp32_is_that_of_the_model(kind: str) -> None:
    inputs = SIZES[kind].step(5, 23)  # the last place of the cache
    with torch.no_grad():
        expected = session(kind).model(*inputs)
    assert_equal(network(kind, "fp32")(*inputs), expected, FLOAT_TOLERANCE)


def test_llama_runs_on_its_own_kernels() -> None:
    kernels = [row.kernel.partition("/")[0] for row in network("llama", "w4a16").audit]
    layers = SIZES["llama"].layers
    assert kernels.count("rmsnorm") == 2 * layers + 1
    assert kernels.count("rotary") == kernels.count("write_rows") == 2 * layers
    attention = [r.kernel for r in network("llama", "w4a16").audit if r.kernel.startswith("atten")]
    # Two heads that share keys are two rows of one head: keys are not repeated.
    assert all(key.startswith("attention/1x2x2x24x16x16/fp32") for key in attention)


def test_inputs_are_left_as_they_are_unless_in_place() -> None:
    net, inputs = network("gpt", "w4a16"), SIZES["gpt"].step(1, 5)
    before = [value.clone() for value in inputs]
    copied = net(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    changed = net(*inputs, in_place=True)
    assert all(torch.equal(a, b) for a, b in zip(copied, changed, strict=True))
    assert all(a is b for a, b in zip(changed[1:], inputs[2:], strict=True))
    assert not torch.equal(inputs[2], before[2])


def test_a_saved_step_updates_arrays_without_torch(tmp_path: Path) -> None:
    net, inputs = network("gpt", "w8a8"), SIZES["gpt"].step(1, 5)
    expected = net(*inputs)
    loaded = mpq.load(net.save(tmp_path / "step"))
    arrays = [_aligned(value.numpy()) for value in inputs]
    found = loaded(*arrays, in_place=True)
    assert all(a is b for a, b in zip(found[1:], arrays[2:], strict=True))
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(found, expected, strict=True))


def _aligned(array: np.ndarray) -> np.ndarray:
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def test_what_cannot_be_changed_in_place_is_refused() -> None:
    inputs = list(SIZES["gpt"].step(1, 5))
    inputs[2] = inputs[2].transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(MpqError, match="changed in place"):
        network("gpt", "w8a8")(*inputs, in_place=True)


def test_the_virtual_machine_updates_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotAProgram("a test")

    expected = network("gpt", "fp32")
    monkeypatch.setattr(build, "build_entry", refuse)
    monkeypatch.setattr(build, "_BUILT", {})
    net, inputs = assign_session(session("gpt"), "fp32"), SIZES["gpt"].step(1, 5)
    assert net.manifest.arena is None
    before = [value.clone() for value in inputs]
    assert_equal(net(*inputs), expected(*inputs), FLOAT_TOLERANCE)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    changed = net(*inputs, in_place=True)
    assert all(a is b for a, b in zip(changed[1:], inputs[2:], strict=True))
    assert torch.equal(changed[1], expected(*before)[1])


def generated(net: CompiledNetwork, size: Size, count: int) -> tuple[list[int], list[Tensor]]:
    """Return greedily chosen tokens after token 1, and the logits of each step."""
    cache, tokens, logits = size.empty_cache(), [1], []
    for position in range(count):
        step = torch.tensor([[tokens[-1]]]), torch.tensor([position])
        scores, *cache = net(*step, *cache, in_place=True)
        logits.append(scores[0])
        tokens.append(int(scores.argmax()))
    return tokens, logits


@pytest.mark.parametrize("kind", SIZES)
def test_steps_equal_recomputation(kind: str) -> None:
    size = SIZES[kind]
    tokens, steps = generated(network(kind, "w4a16"), size, 20)
    # The last step whose best token is ahead of the next by more than rounding.
    count = max(number for number, scores in enumerate(steps, 1) if _is_ahead(scores))
    assert count > 10
    whole = network(kind, "w4a16", count)
    prompt = torch.tensor([tokens[:count]]), torch.arange(count)
    scores = whole(*prompt, *size.empty_cache())[0][0]
    assert_equal(steps[count - 1], scores, BF16_TOLERANCE)
    assert int(scores.argmax()) == tokens[count]
    assert len(set(tokens)) > 3


def _is_ahead(scores: Tensor) -> bool:
    first, second = scores.flatten().topk(2).values
    return bool(first - second > 2 * BF16_TOLERANCE * scores.abs().max())
