"""Versions, hashes, seed, device and recipe: what is needed to make the network again."""

from __future__ import annotations

import json

from mpq_compile.report.blocks import Block, Facts, Missing, Prose, Section
from mpq_compile.report.evidence import Evidence

_TITLES = {
    "toolchain": "hash of the toolchain",
    "kernels": "hash of the kernels",
    "network": "hash of the network",
    "device": "device",
    "reached": "reached as",
    "data": "calibration data",
    "observer": "ranges by",
    "samples": "samples at most",
}


def provenance_section(evidence: Evidence) -> Section:
    """Return what the plan and the artifact record of how they were made."""
    plan = evidence.plan
    recorded = [(_TITLES.get(name, name), value) for name, value in plan.provenance.items()]
    if evidence.history is not None and evidence.history.time:
        recorded.append(("last measured at", evidence.history.time))
    if "mpq_compile" not in plan.provenance:
        recorded.append(("mpq_compile", "not recorded"))
    chosen = [("target", plan.target), ("seed", str(plan.seed))]
    blocks: list[Block] = [Facts(rows=[*chosen, *recorded])]
    if plan.constraints:
        text = json.dumps(dict(plan.constraints), ensure_ascii=False)
        blocks.append(Prose(text=f"Constraints: {text}"))
    if evidence.build:
        blocks.append(Facts(rows=list(evidence.build.items())))
    else:
        blocks.append(Missing(text="Nothing was built: there are no facts of an artifact."))
    return Section(
        id="provenance",
        name="Provenance",
        title="Provenance",
        lead="The same input with the same versions gives the same plan.",
        blocks=blocks,
    )
