"""The same part at other input shapes: the same plan, ranges and codes, another network."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from torch import fx

from mpq_compile.building import reference_of
from mpq_compile.capture import CapturedGraph
from mpq_compile.deploy import write_artifact
from mpq_compile.errors import CaptureError
from mpq_compile.passes.base import target_name
from mpq_compile.passes.network import Network, prepare
from mpq_compile.passes.rescale import with_constants
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.selfcheck import check_against_oracle
from mpq_compile.session import Session
from mpq_compile.types import Plan


def build_variant(session: Session, plan: Plan, captured: CapturedGraph) -> CompiledNetwork:
    """Build a plan for a graph that differs from the session's in shapes alone.

    Ranges were calibrated and codes were found at the session's shapes; they hold for all.

    Raises:
        CaptureError: The graph differs in more than shapes.
    """
    network = network_like(session.network, captured)
    owner = tempfile.TemporaryDirectory(prefix="mpq-")
    folder = Path(owner.name) / "artifact"
    materialized = write_artifact(
        network,
        session.rounded_for(plan.assignment),
        plan,
        folder,
        session.device,
        session.allow_float,
        session.costing.choice_of,
    )
    built = CompiledNetwork(folder, reference_of(materialized), owner, session.device)
    if session.device.present:
        check_against_oracle(built, captured.example_inputs)
    return built


def network_like(network: Network, captured: CapturedGraph) -> Network:
    """Return the network of another capture, with the constants of ``network``.

    Those may have been scaled since they were captured (``passes.balance``).

    Raises:
        CaptureError: Nodes or sites differ, so that ranges and codes would not fit.
    """
    other = prepare(replace(captured, met=network.captured.met))
    own, found = _structure(network.module), _structure(other.module)
    if own != found:
        differing = next((b for a, b in zip(own, found, strict=False) if a != b), "its length")
        raise CaptureError(
            "the graph of these input shapes is another one",
            expected="the operators of the calibrated graph",
            found=differing,
            remedy="show inputs of these shapes alone to mpq.calibrating",
        )
    kept = {
        name: value
        for name, value in network.constants().items()
        # What depends on shapes, such as a table of positions, is the other's own.
        if value is not None and value.shape == _shape(other, name)
    }
    return with_constants(other, kept, network.statistics)


def _shape(network: Network, name: str) -> tuple[int, ...] | None:
    value = network.constants().get(name)
    return None if value is None else tuple(value.shape)


def _structure(module: fx.GraphModule) -> list[tuple[str, str, str]]:
    """Return names and targets of all nodes: what calibration tables are keyed by."""
    nodes = [node for node in module.graph.nodes if node.op != "placeholder"]
    return [
        (node.name, node.op, target_name(node) if node.op == "call_function" else str(node.target))
        for node in nodes
    ]
