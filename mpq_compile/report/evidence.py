"""What a report speaks of: a plan, and what was built and measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mpq_compile.cost.profile import runs_networks
from mpq_compile.report.frontier import FrontierReport
from mpq_compile.runtime.artifact import WEIGHTS, Manifest, open_artifact, read_verification
from mpq_compile.runtime.history import History, read_history
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.runtime.trace import Trace, read_trace
from mpq_compile.types import AuditRow, Plan, Verification

Source = CompiledNetwork | Plan | str | Path


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that a report may say, and nothing else; what is not known is None or empty.

    Args:
        title: Name of the network.
        plan: The plan.
        timed: Whether networks can be timed on the plan's target.
        audit: What runs at each site.
        notes: What the compiler had to say.
        build: What was built, as names and values to print.
        stored_bytes: Of the weights on disk.
        verification: What fresh processes measured.
        history: Whole networks that were measured on the way.
        trace: What each of its kernels took.
        frontiers: Trade-offs of the same network.
    """

    title: str
    plan: Plan
    timed: bool
    audit: Sequence[AuditRow] = ()
    notes: Sequence[str] = ()
    build: Mapping[str, str] = field(default_factory=dict)
    stored_bytes: int | None = None
    verification: Verification | None = None
    history: History | None = None
    trace: Trace | None = None
    frontiers: Sequence[FrontierReport] = ()

    @property
    def built(self) -> bool:
        """True where there is an artifact, not a plan alone."""
        return self.stored_bytes is not None


def evidence_of(
    source: Source, title: str | None = None, frontiers: Sequence[FrontierReport] = ()
) -> Evidence:
    """Collect what is known of a network, of a plan, or of an artifact's folder.

    Raises:
        ArtifactError: The folder is no artifact, or a damaged one.
    """
    if isinstance(source, Plan):
        timed = runs_networks(source.target)
        name = title or f"Plan for {source.target}"
        return Evidence(title=name, plan=source, timed=timed, frontiers=frontiers)
    if isinstance(source, CompiledNetwork):
        folder, manifest, plan = source.folder, source.manifest, source.plan
        verification = source.verification
    else:
        folder = Path(source)
        manifest, plan = open_artifact(folder)
        verification = read_verification(folder)
    return Evidence(
        title=title or folder.resolve().name,
        plan=plan,
        timed=runs_networks(plan.target),
        audit=manifest.audit,
        notes=manifest.notes,
        build=_built(manifest),
        stored_bytes=(folder / WEIGHTS).stat().st_size,
        verification=verification,
        history=read_history(folder),
        trace=read_trace(folder),
        frontiers=frontiers,
    )


def _built(manifest: Manifest) -> dict[str, str]:
    arena = manifest.arena
    return {
        "kernels of tier": manifest.tier,
        "threads": str(manifest.threads),
        "inputs": _shapes(manifest.inputs),
        "outputs": _shapes(manifest.outputs),
        "batch": "any" if manifest.dynamic_batch else "as compiled",
        "memory for activations": f"{arena:,} bytes" if arena else "Relax's virtual machine's",
    }


def _shapes(tensors: Sequence[Mapping[str, object]]) -> str:
    return ", ".join(f"{tensor['dtype']} {tensor['shape']}" for tensor in tensors)
