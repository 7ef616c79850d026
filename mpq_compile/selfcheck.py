"""Does what was built compute what the oracle computes? Asked of every network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mpq_compile.errors import LoweringError
from mpq_compile.runtime.network import CompiledNetwork

# Float operators differ in their last bits. Where a quantizer stands behind one, or bf16 is stored,
# a value may then round to the neighbouring code, and later layers see that: in deep networks of
# random weights with mixed candidates 37 dB were seen. A wrong mask left 54 dB at fp32.
_FLOAT_DECIBELS = 80.0
# A network that makes much of the last bits, as one that compares or sorts does, may differ by what
# a change of its inputs by this share makes, and twenty decibels; never by more than the least.
_LAST_BITS, _BEYOND_DECIBELS, _LEAST_FLOAT_DECIBELS = 1e-6, 20.0, 40.0
_MIXED_DECIBELS = 25.0
# Such a change is a rounding like others, and grows to their noise at most: where that is more
# than 25 dB, two roundings of one network, each as far from float, are 3 dB further apart. No less
# than this is believed.
_APART_DECIBELS, _LEAST_DECIBELS = 3.0, 10.0


def check_against_oracle(network: CompiledNetwork, inputs: Sequence[Tensor]) -> None:
    """Run device and oracle on calibration inputs and compare.

    Integer networks must agree bit for bit, fp32 ones within a noise of −80 dB of the signal, or
    within what they make of the last bits of their inputs, all others within −25 dB, or within what
    their rounding makes of the float network's outputs.

    Raises:
        LoweringError: They differ; the network would compute something else than was evaluated.
    """
    with torch.no_grad():
        expected = pytree.tree_leaves(network.reference(*inputs))
    found = pytree.tree_leaves(network(*inputs))
    exact = all(row.compute in ("int8", "int8 rows", "lookup") for row in network.audit)
    fp32 = all(row.compute == "fp32" for row in network.audit)
    least = _FLOAT_DECIBELS if fp32 else _MIXED_DECIBELS
    for index, (device, oracle) in enumerate(zip(found, expected, strict=True)):
        if exact and not torch.equal(device, oracle):
            raise _differs(index, "equal bits", f"{_differing(device, oracle)} values differ")
        level = agreement_decibels(device, oracle)
        if level < least:
            as_far = _as_far_as_last_bits if fp32 else _as_far_as_rounding
            least = min(least, as_far(network, inputs, index, oracle))
        if level < least:
            raise _differs(index, f"{least:.3g} dB of agreement", f"{level:.1f} dB")


def _as_far_as_rounding(
    network: CompiledNetwork, inputs: Sequence[Tensor], index: int, oracle: Tensor
) -> float:
    """Return the agreement that two roundings of the network have, from its oracle's with float."""
    with torch.no_grad():
        exact = network.materialized.network.module(*pytree.tree_leaves(inputs))[index]
    return max(agreement_decibels(oracle, exact) - _APART_DECIBELS, _LEAST_DECIBELS)


def _as_far_as_last_bits(
    network: CompiledNetwork, inputs: Sequence[Tensor], index: int, oracle: Tensor
) -> float:
    """Return the agreement of the oracle with itself on inputs that differ in their last bits."""
    generator = torch.Generator().manual_seed(0)

    def shaken(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        return value + _LAST_BITS * value * torch.randn(value.shape, generator=generator)

    with torch.no_grad():
        outputs = pytree.tree_leaves(network.reference(*map(shaken, pytree.tree_leaves(inputs))))
    return max(agreement_decibels(outputs[index], oracle) - _BEYOND_DECIBELS, _LEAST_FLOAT_DECIBELS)


def agreement_decibels(device: Tensor, oracle: Tensor) -> float:
    """Return 10 log10(Σ oracle² / Σ (device − oracle)²); infinite where they are equal."""
    noise = float((device.double() - oracle.double()).square().sum())
    signal = float(oracle.double().square().sum())
    if noise == 0:
        return float("inf")
    return 10 * float(torch.log10(torch.tensor(signal / noise, dtype=torch.float64)))


def _differing(device: Any, oracle: Any) -> int:
    return int((device != oracle).sum())


def _differs(index: int, expected: str, found: str) -> LoweringError:
    return LoweringError(
        "the built network does not compute what its oracle computes",
        where=f"output {index}",
        expected=expected,
        found=found,
        remedy="report the network; constrain its sites to fp32 to find the operator at fault",
    )
