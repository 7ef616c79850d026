"""Plans of a session → artifacts on disk, loaded and checked against their oracle."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import fx
from torch.utils import _pytree as pytree

from mpq_compile.deploy import write_artifact
from mpq_compile.passes.materialized import Materialized
from mpq_compile.progress import counted
from mpq_compile.quant.calibration import Calibration
from mpq_compile.runtime.fingerprint import default_threads
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.selfcheck import check_against_oracle
from mpq_compile.types import Plan

if TYPE_CHECKING:
    from mpq_compile.session import Session


def build_plan(
    session: Session, plan: Plan, owner: tempfile.TemporaryDirectory[str] | None = None
) -> CompiledNetwork:
    """Write the artifact of a plan to ``owner``, or to a temporary folder, and load it."""
    owner = owner or tempfile.TemporaryDirectory(prefix="mpq-")
    calibration = session.rounded_for(plan.assignment)
    return _loaded(session, _written(session, plan, calibration, owner), owner)


def build_plans(session: Session, plans: Sequence[Plan]) -> list[CompiledNetwork]:
    """Build several plans to be timed; LLVM compiles as many at a time as there are cores.

    Their weights are rounded to nearest: the time does not depend on it.
    """
    found = [session.calibration_for(plan.assignment) for plan in plans]
    owners = [tempfile.TemporaryDirectory(prefix="mpq-") for _ in plans]
    with (
        counted(len(plans), "build networks") as advance,
        ThreadPoolExecutor(default_threads()) as pool,
    ):
        tasks = zip(plans, found, owners, strict=True)
        jobs = [pool.submit(_written, session, *task) for task in tasks]
        for job in jobs:
            job.add_done_callback(lambda _: advance(1))
        materialized = [job.result() for job in jobs]
    # One after the other: a device may be remote, and its connection is no place for two.
    graphs = zip(materialized, owners, strict=True)
    return [_loaded(session, graph, owner) for graph, owner in graphs]


def _folder(owner: tempfile.TemporaryDirectory[str]) -> Path:
    return Path(owner.name) / "artifact"


def _written(
    session: Session,
    plan: Plan,
    calibration: Calibration,
    owner: tempfile.TemporaryDirectory[str],
) -> Materialized:
    return write_artifact(
        session.network,
        calibration,
        plan,
        _folder(owner),
        session.device,
        session.allow_float,
        session.costing.choice_of,
    )


def _loaded(
    session: Session, materialized: Materialized, owner: tempfile.TemporaryDirectory[str]
) -> CompiledNetwork:
    oracle = reference_of(materialized)
    network = CompiledNetwork(_folder(owner), oracle, owner, session.device, materialized)
    if session.device.present:
        check_against_oracle(network, _first_inputs(session))
    return network


def _first_inputs(session: Session) -> list[Any]:
    """Return calibration inputs of the compiled shapes."""
    captured = session.network.captured
    sizes = [len(e) if e.dim() else 0 for e in captured.example_inputs]
    values = session.batches[0].inputs
    if not captured.dynamic_batch or len(values[0]) < sizes[0]:
        return list(captured.example_inputs)
    return [value[:size] for value, size in zip(values, sizes, strict=True)]


def reference_of(materialized: Materialized) -> fx.GraphModule:
    """Return the materialized graph with the structure of outputs that the model returns."""
    return structured(materialized.module, materialized.network.captured.out_spec)


def structured(module: fx.GraphModule, spec: pytree.TreeSpec) -> fx.GraphModule:
    """Return a graph with flat outputs so that it returns them in the structure of ``spec``."""
    graph = fx.Graph()
    outputs = graph.graph_copy(module.graph, val_map={})
    graph.output(pytree.tree_unflatten(list(outputs), spec))
    return fx.GraphModule(module, graph)
