"""What a compiled model consists of: parts, their bits and costs, and what PyTorch runs itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mpq_compile.errors import PlanError
from mpq_compile.integrations.bound_graph import BoundGraph
from mpq_compile.integrations.compilation import Compilation, known_compilation
from mpq_compile.integrations.part import Part
from mpq_compile.integrations.running_call import context_of
from mpq_compile.types import Plan

COMPILED, EAGER = "compiled", "eager"


@dataclass(frozen=True, kw_only=True)
class PartExplanation:
    """One part of a compiled model.

    Args:
        status: ``compiled``, or ``eager`` where PyTorch runs it in float.
        reason: Why it is eager; "" where it is not.
        ends: Why the part ends where it does: the graph break after it; "" at the end.
        layers: Modules that it holds weights of.
        assignment: Site id to candidate.
        shapes: Input shapes that were compiled, a network each.
        dynamic_batch: Whether any number of samples runs, as slices of the compiled batch.
        eager_shapes: Input shapes that run in eager PyTorch, and why.
        size_bytes: Stored weights.
        predicted_ms: Latency by the model of costs; None where none was asked for.
        measured_ms: Median latency in fresh processes; None where it was not measured.
    """

    status: str
    reason: str
    ends: str
    layers: Sequence[str]
    assignment: Mapping[str, str]
    shapes: Sequence[Sequence[Sequence[int]]]
    dynamic_batch: bool
    eager_shapes: Mapping[str, str]
    size_bytes: int
    predicted_ms: float | None
    measured_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What became of a compiled model.

    Args:
        parts: In the order in which they first ran.
        plan: One plan for all parts; it can be saved and be an option of another compilation.
        predicted_ms, measured_ms: Of all compiled parts together; None where one is unknown.
        notes: What else the user should know.
    """

    parts: Sequence[PartExplanation]
    plan: Plan
    predicted_ms: float | None
    measured_ms: float | None
    notes: Sequence[str]

    @property
    def eager(self) -> list[PartExplanation]:
        """The parts that PyTorch runs in float."""
        return [part for part in self.parts if part.status == EAGER]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [line for n, part in enumerate(self.parts) for line in _lines(n, part)]
        total = f"together: {_cost(self.predicted_ms, self.measured_ms)}"
        return "\n".join([*lines, total, *(f"note: {note}" for note in self.notes)])


def explain(compiled: Any) -> Explanation:
    """Tell what ``torch.compile(model, backend="mpq")`` made of a model.

    Raises:
        PlanError: It was neither called nor calibrated yet.
        MpqError: ``torch.compile`` did not make it.
    """
    compilation = known_compilation(context_of(compiled))
    if compilation is None or compilation.plan is None:
        raise _no_plan(known=compilation is not None)
    parts = [
        *(_part(part) for part in compilation.parts),
        *(_other(bound, reason) for bound, reason in compilation.others.items()),
    ]
    quantized = [part for part in parts if part.status == COMPILED]
    return Explanation(
        parts=parts,
        plan=compilation.plan,
        predicted_ms=compilation.plan.predicted.latency_ms,
        measured_ms=_total([part.measured_ms for part in quantized]),
        notes=_notes(compilation),
    )


def _no_plan(known: bool) -> PlanError:
    """Return the error of a model without a plan; ``known`` where the backend got a graph of it."""
    found, remedy = "none of its parts is compiled", ""
    if not known:
        found = "no graph of it: it was not called, or Dynamo made none and runs it in float"
        remedy = (
            "; if it was called, TORCH_LOGS=graph_breaks says why there is no graph (recurrent "
            "layers need torch._dynamo.config.allow_rnn = True); mpq.compile does without Dynamo"
        )
    return PlanError(
        "the compiled model has no plan yet",
        expected="a model that was called, or calibrated",
        found=found,
        remedy="call it once with calibration data among its options, or use mpq.calibrating"
        + remedy,
    )


def _part(part: Part) -> PartExplanation:
    network = next(iter(part.networks.values()), None)
    if network is None or part.plan is None:
        return _other(part.bound, part.reason)
    seen = network.verification
    return PartExplanation(
        status=COMPILED,
        reason="",
        ends=part.bound.graph.break_reason,
        layers=_layers(part.bound),
        assignment=dict(part.plan.assignment),
        shapes=[[spec["shape"] for spec in n.manifest.inputs] for n in part.networks.values()],
        dynamic_batch=network.manifest.dynamic_batch,
        eager_shapes={
            **{
                ", ".join(str(list(shape)) for shape, _ in key): reason
                for key, reason in part.unbuilt.items()
            },
            **({"other shapes": part.full} if part.full else {}),
        },
        size_bytes=network.size_bytes,
        predicted_ms=part.plan.predicted.latency_ms,
        measured_ms=None if seen is None else seen.latency_ms,
    )


def _other(bound: BoundGraph, reason: str) -> PartExplanation:
    return PartExplanation(
        status=EAGER,
        reason=reason,
        ends=bound.graph.break_reason,
        layers=_layers(bound),
        assignment={},
        shapes=[],
        dynamic_batch=False,
        eager_shapes={},
        size_bytes=0,
        predicted_ms=None,
        measured_ms=None,
    )


def _layers(bound: BoundGraph) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in bound.names))


def _notes(compilation: Compilation) -> list[str]:
    assert compilation.plan is not None
    return [*compilation.notes, *compilation.plan.notes]


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _cost(predicted: float | None, measured: float | None) -> str:
    def text(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.4g} ms"

    return f"predicted {text(predicted)}, measured {text(measured)}"


def _lines(number: int, part: PartExplanation) -> list[str]:
    layers = ", ".join(part.layers[:3]) + (", …" if part.layers[3:] else "")
    lines = [f"part {number}: {part.status} ({layers or 'no weights'})"]
    if part.reason:
        lines.append(f"  reason: {part.reason}")
    if part.assignment:
        counts = Counter(part.assignment.values())
        bits = ", ".join(f"{count} × {name}" for name, count in counts.items())
        lines.append(f"  sites: {len(part.assignment)} ({bits}), {part.size_bytes:,} bytes")
        lines.append(f"  latency: {_cost(part.predicted_ms, part.measured_ms)}")
        batch = ", any batch" if part.dynamic_batch else ""
        lines.append(f"  inputs: {'; '.join(map(str, part.shapes))}{batch}")
    lines += [f"  eager at {shape}: {reason}" for shape, reason in part.eager_shapes.items()]
    return lines + ([f"  ends at: {part.ends}"] if part.ends else [])
