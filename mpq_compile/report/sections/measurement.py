"""How the network was timed, and what else was measured of it."""

from __future__ import annotations

from mpq_compile.report.blocks import Block, Facts, Missing, Section
from mpq_compile.report.evidence import Evidence
from mpq_compile.report.spelling import duration, energy, percent, size
from mpq_compile.report.verdicts import why_not_measured
from mpq_compile.types import Verification


def measurement_section(evidence: Evidence) -> Section:
    """Return percentiles, how far the machine was disturbed, memory and energy."""
    seen = evidence.verification
    blocks: list[Block]
    if seen is None or not evidence.timed:
        blocks = [Missing(text=f"Not measured: {why_not_measured(evidence)}.")]
    else:
        blocks = [Facts(rows=_facts(seen))]
        if seen.energy_mj is None:
            blocks.append(Missing(text="Energy was not measured: the device does not tell it."))
    return Section(
        id="measurement",
        name="Measurement",
        title="How it was measured",
        lead="Fresh processes, one after the other, beside a reference workload that tells "
        "whether the machine was as usual.",
        blocks=blocks,
    )


def _facts(seen: Verification) -> list[tuple[str, str]]:
    facts = [
        ("median", duration(seen.latency_ms)),
        ("95th percentile", duration(seen.latency_p95_ms)),
        ("99th percentile", duration(seen.latency_p99_ms)),
        ("calls timed", f"{seen.samples:,}"),
        ("fresh processes", str(seen.processes)),
        ("spread between processes", percent(seen.process_spread)),
        ("slowest block over the fastest", f"+{percent(seen.drift)}"),
        ("reference workload at its slowest", f"+{percent(seen.reference_drift)}"),
        ("waiting for a core, at its most", percent(seen.waited)),
        ("parts of blocks left out", str(seen.repeated)),
        ("memory of loading and running", size(seen.memory_bytes)),
        ("plans built until this one", str(seen.rounds)),
        ("verdict", seen.status),
    ]
    if seen.energy_mj is not None:
        facts.append((f"energy of a call ({seen.energy_source})", energy(seen.energy_mj)))
    if seen.device:
        facts.append(("device", seen.device))
    return facts
