"""Network + calibration + plan → artifact on disk."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch.utils import _pytree as pytree

from mpq_compile.errors import LoweringError, PlanError, nearest
from mpq_compile.kernels.choice import ChoiceOf, modelled
from mpq_compile.kernels.tier import Tier
from mpq_compile.lower.interface import Step
from mpq_compile.passes.base import target_name
from mpq_compile.passes.materialize import materialize
from mpq_compile.passes.materialized import Materialized
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.runtime.artifact import (
    LIBRARY,
    PLAN,
    WEIGHTS,
    Manifest,
    seal,
    write_weights,
)
from mpq_compile.runtime.device import Device
from mpq_compile.types import AuditRow, Candidate, Plan, Site

# Relax has one stack of block builders a process. What takes long is compiling, outside of it.
_LOWERING = threading.Lock()
_MACHINE = (
    "Relax's virtual machine runs the network ({reason}): each call costs more, and no trace tells "
    "its kernels apart"
)


def complete_assignment(network: Network, assignment: str | Mapping[str, str]) -> dict[str, str]:
    """Return a candidate for every site, from one name for all or from a mapping.

    Raises:
        PlanError: A name is no candidate, a site is unknown or left out, or tied sites differ.
    """
    if isinstance(assignment, str):
        assignment = {site.id: assignment for site in network.sites}
    known = [site.id for site in network.sites]
    for key, name in assignment.items():
        Candidate.parse(name)
        if key not in known:
            raise PlanError(
                f"unknown site {key!r}",
                expected="a site of the network",
                found=repr(key),
                remedy=nearest(key, known),
            )
    missing = [site for site in known if site not in assignment]
    if missing:
        raise PlanError(
            "the assignment leaves sites out",
            expected=f"a candidate for each of {len(known)} sites",
            found=f"nothing for {', '.join(missing[:5])}",
            remedy="name them too, or start from a plan's assignment",
        )
    _check_ties(network, assignment)
    return {site: assignment[site] for site in known}


def _check_ties(network: Network, assignment: Mapping[str, str]) -> None:
    chosen: dict[str, tuple[str, str]] = {}
    for site in network.sites:
        first, name = chosen.setdefault(site.group, (site.id, assignment[site.id]))
        if name != assignment[site.id]:
            raise PlanError(
                "sites that share a weight must share a candidate",
                where=site.id,
                expected=f"{name}, as at {first}",
                found=assignment[site.id],
                remedy="give both the same candidate",
            )


def write_artifact(
    network: Network,
    calibration: Calibration,
    plan: Plan,
    folder: Path,
    device: Device,
    allow_float: bool = False,
    choice_of: ChoiceOf = modelled,
) -> Materialized:
    """Materialize, lower, build and write the artifact of ``plan`` to ``folder``.

    ``device`` is what it is built for; ``choice_of`` gives tuned schedules; the audit names them.

    Returns:
        The materialized graph: the oracle of what was written.
    """
    tier, threads = device.tier, device.threads
    # TVM reads its thread count when it is first imported, so only now.
    from mpq_compile.lower.build import build_library
    from mpq_compile.lower.lowering import lower

    with _LOWERING:
        materialized = materialize(network, calibration, plan.assignment, allow_float)
        lowered = lower(materialized, network.captured.example_inputs, tier, threads, choice_of)
    folder.mkdir(parents=True, exist_ok=True)
    library = build_library(lowered, tier, threads, folder / LIBRARY)
    index = write_weights(folder / WEIGHTS, lowered.arrays)
    (folder / PLAN).write_text(json.dumps(plan.to_json(), indent=1) + "\n", encoding="utf-8")
    names = network.captured.input_names
    inputs = zip(names, lowered.input_shapes, lowered.input_dtypes, strict=True)
    outputs = zip(lowered.output_shapes, lowered.output_dtypes, strict=True)
    manifest = Manifest(
        tier=tier.name,
        threads=threads,
        arena=library.arena,
        steps=_by_site(library.steps, materialized),
        inputs=[{"name": n, "shape": list(shape), "dtype": dtype} for n, shape, dtype in inputs],
        outputs=[{"shape": list(shape), "dtype": dtype} for shape, dtype in outputs],
        updates=lowered.updates,
        out_spec=pytree.treespec_dumps(network.captured.out_spec),
        dynamic_batch=network.captured.dynamic_batch,
        sites=lowered.sites,
        recipes=lowered.recipes,
        arrays=index,
        audit=audit_rows(materialized, lowered.kernel_of, tier),
        notes=[
            *_untried(device),
            *(f"no schedule fits {name}: it runs scalar" for name in library.unscheduled),
            *([_MACHINE.format(reason=library.machine_reason)] if library.machine_reason else []),
        ],
        provenance=dict(plan.provenance),
    )
    seal(folder, manifest)
    return materialized


def _by_site(steps: Sequence[Step], materialized: Materialized) -> list[Step]:
    """Name the steps that compute a site by it."""
    sites = {name: record.site.id for name, record in materialized.records.items()}
    return [replace(step, name=sites.get(step.name, step.name)) for step in steps]


def _untried(device: Device) -> list[str]:
    return [] if device.present else [f"{device.name} was not at hand: built, and never run"]


def _compute(site: Site, candidate: Candidate) -> str:
    """Return how a site multiplies, as the audit names it."""
    if candidate.is_float:
        return candidate.name
    if not site.multiplies:
        return "lookup"
    if not candidate.integer_compute:
        return "weight-only bf16"
    return "int8 rows" if candidate.dynamic else "int8"


def audit_rows(
    materialized: Materialized, kernel_of: Mapping[str, str], tier: Tier
) -> Sequence[AuditRow]:
    """Return what runs at each site, and each operator that runs in float.

    Raises:
        LoweringError: A site has no kernel of ours: it would have fallen back silently.
    """
    rows = []
    for record in materialized.records.values():
        site, candidate = record.site, record.candidate
        if site.id not in kernel_of:
            raise LoweringError(
                "a site was lowered without a kernel",
                where=site.id,
                expected=f"a kernel for {candidate.name}",
                remedy="constrain the site to fp32 and report this network",
            )
        rows.append(
            AuditRow(
                site=site.id,
                requested=candidate.name,
                stored_bits=candidate.weight_bits,
                compute=_compute(site, candidate),
                kernel=kernel_of[site.id],
                tier=tier.name,
            )
        )
    nodes = {node.name: node for node in materialized.module.graph.nodes}
    for name in materialized.floats:
        rows.append(
            AuditRow(
                site=name,
                requested="float",
                stored_bits=32,
                compute="fp32",
                kernel=kernel_of.get(name, f"TVM: {target_name(nodes[name])}"),
                tier=tier.name,
            )
        )
    return rows
