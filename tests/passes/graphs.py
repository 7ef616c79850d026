"""What the tests of passes share: from a model to a graph, and what a graph calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mpq_compile.calibrate import calibrate, read_batches
from mpq_compile.capture import CapturedGraph, capture
from mpq_compile.passes.base import Pass, is_call, run_passes, target_name
from mpq_compile.passes.network import Network, prepare
from mpq_compile.quant.calibration import Calibration


def captured(model: nn.Module, *inputs: Tensor) -> CapturedGraph:
    return capture(model.eval(), inputs)


def after(module: fx.GraphModule, *passes: Pass) -> fx.GraphModule:
    """Run passes; the graph is linted after each, and the input module must not change."""
    before = str(module.graph)
    changed = run_passes(module, passes)
    assert str(module.graph) == before
    return changed


def calls(module: fx.GraphModule) -> Counter[str]:
    """Count what a graph calls, by name."""
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    names = [target_name(node).removeprefix("aten.").removeprefix("mpq.") for node in nodes]
    return Counter(name.partition(".")[0] for name in names)


def only(module: fx.GraphModule, *targets: Any) -> fx.Node:
    """Return the single node that calls one of ``targets``."""
    (node,) = [node for node in module.graph.nodes if is_call(node, *targets)]
    return node


def assert_same(model: nn.Module, module: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """The graph computes what the model does, to 1e-5 of the largest value."""
    with torch.no_grad():
        expected = pytree.tree_leaves(model(*inputs))
        found = pytree.tree_leaves(module(*inputs))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp_min(1.0)


def prepared(model: nn.Module, *inputs: Tensor) -> Network:
    return prepare(captured(model, *inputs))


def calibrated(model: nn.Module, *inputs: Tensor) -> tuple[Network, Calibration]:
    """Prepare for the first sample, calibrate on all of them."""
    network = prepared(model, *(value[:1] for value in inputs))
    return network, calibrate(network, read_batches([inputs], network))


def decibels(found: Any, exact: Any) -> float:
    """Return the least signal-to-noise ratio over the outputs."""
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(exact), strict=True)
    ratios = [b.square().sum() / (a - b).square().sum().clamp_min(1e-20) for a, b in pairs]
    return float(10 * torch.log10(torch.stack(ratios).min().detach()))
