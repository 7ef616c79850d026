"""Each bound of a budget: what was promised, predicted and measured, and whether it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mpq_compile.report.evidence import Evidence

Word = Literal["kept", "missed", "inconclusive", "not measured"]
# The worst of a budget's verdicts is that of the whole budget.
_WORST_FIRST: tuple[Word, ...] = ("missed", "inconclusive", "not measured", "kept")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval; ends that are not known are None."""

    value: float
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One bound, in the unit of its field of :class:`~mpq_compile.types.Budget`.

    ``reason`` says why the verdict is what it is; ``promised`` is None for what the budget leaves
    free.
    """

    bound: str
    promised: float | None
    predicted: Estimate | None
    measured: Estimate | None
    word: Word
    reason: str

    @property
    def found(self) -> Estimate | None:
        """The best that is known: measured, or else predicted."""
        return self.measured or self.predicted


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Return one verdict for each bound of the plan's budget."""
    return [verdict(evidence, name, limit) for name, limit in evidence.plan.budget.items()]


def worst(found: Sequence[Verdict]) -> Word | None:
    """Return the verdict on the whole budget; None without any bound."""
    words = {each.word for each in found}
    return next((word for word in _WORST_FIRST if word in words), None)


def verdict(evidence: Evidence, name: str, limit: float | None) -> Verdict:
    """Judge one bound."""
    if name in ("latency_ms", "latency_p95_ms"):
        return _of_latency(evidence, name, limit)
    if name == "energy_mj":
        return _of_energy(evidence, limit)
    return _of_count(evidence, name, limit)


def _of_latency(evidence: Evidence, name: str, limit: float | None) -> Verdict:
    predicted = predicted_latency(evidence) if name == "latency_ms" else None
    measured = measured_latency(evidence, name)
    word, reason = _timed(evidence, measured, limit)
    return Verdict(
        bound=name,
        promised=limit,
        predicted=predicted,
        measured=measured,
        word=word,
        reason=reason,
    )


def predicted_latency(evidence: Evidence) -> Estimate | None:
    """Return the plan's prediction of the median, in ms."""
    predicted = evidence.plan.predicted
    if predicted.latency_ms is None:
        return None
    return Estimate(
        value=predicted.latency_ms,
        lower=predicted.latency_ms_lower95,
        upper=predicted.latency_ms_upper95,
    )


def measured_latency(evidence: Evidence, name: str = "latency_ms") -> Estimate | None:
    """Return what was measured on the target itself, in ms."""
    seen = evidence.verification
    if seen is None or not evidence.timed:
        return None
    if name == "latency_p95_ms":
        return Estimate(value=seen.latency_p95_ms, upper=seen.latency_p95_ms_upper95)
    return Estimate(
        value=seen.latency_ms, lower=seen.latency_ms_lower95, upper=seen.latency_ms_upper95
    )


def _timed(evidence: Evidence, measured: Estimate | None, limit: float | None) -> tuple[Word, str]:
    seen = evidence.verification
    if measured is None or seen is None:
        return "not measured", why_not_measured(evidence)
    if limit is None:
        return "kept", "timed in fresh processes"
    assert measured.upper is not None
    unsettled = f"the machine did not settle: {seen.disturbance()}"
    beside = "" if seen.settled else f"; {unsettled}"
    if measured.upper <= limit:
        return "kept", f"the upper end of the 95 % interval is within the bound{beside}"
    if seen.status == "inconclusive":
        return "inconclusive", unsettled
    if measured.lower is not None and measured.lower > limit:
        return "missed", f"even the lower end of the 95 % interval is above the bound{beside}"
    return "missed", f"the upper end of the 95 % interval is above the bound{beside}"


def why_not_measured(evidence: Evidence) -> str:
    """Say why there is no measured latency."""
    if not evidence.timed:
        return f"no network runs on {evidence.plan.target} here, so none could be timed"
    if not evidence.built:
        return "this is a plan: nothing was built"
    return "the network was built, and not timed (mpq verify does)"


def _of_energy(evidence: Evidence, limit: float | None) -> Verdict:
    seen = evidence.verification
    by_counter = seen is not None and evidence.timed and seen.energy_source == "rapl"
    planned = evidence.plan.predicted.energy_mj
    measured = (
        Estimate(value=seen.energy_mj)
        if seen and by_counter and seen.energy_mj is not None
        else None
    )
    if measured is None:
        word: Word = "not measured"
        reason = "the device does not tell the energy it takes; the profile's figures predict it"
    else:
        word = "kept" if limit is None or measured.value <= limit else "missed"
        reason = "by the processor's own counter"
    return Verdict(
        bound="energy_mj",
        promised=limit,
        predicted=None if planned is None else Estimate(value=planned),
        measured=measured,
        word=word,
        reason=reason,
    )


def _of_count(evidence: Evidence, name: str, limit: float | None) -> Verdict:
    """Judge what is counted or known exactly: it has no interval."""
    predicted, measured, reason = _counted(evidence, name)
    found = measured or predicted
    if found is None:
        word: Word = "not measured"
    else:
        # The budget's own tolerance: what rounding does to a sum is no excess.
        fits = limit is None or found.value <= limit * (1 + 1e-9)
        word = "kept" if fits else "missed"
    return Verdict(
        bound=name,
        promised=limit,
        predicted=predicted,
        measured=measured,
        word=word,
        reason=reason,
    )


def _counted(evidence: Evidence, name: str) -> tuple[Estimate | None, Estimate | None, str]:
    plan, stored = evidence.plan, evidence.stored_bytes
    if name == "size_mb":
        bytes_on_disk = None if stored is None else Estimate(value=stored / 1e6)
        reason = "counted: this plan was not built" if stored is None else "bytes on disk"
        return Estimate(value=plan.predicted.size_bytes / 1e6), bytes_on_disk, reason
    if name == "max_drop":
        drop = plan.certificate.get("drop")
        if drop is None:
            return None, None, "the plan does not say that the drop was measured"
        return None, Estimate(value=drop["value"]), f"measured by {drop['measure']}"
    if name == "max_loss":
        loss = None if plan.loss is None else Estimate(value=plan.loss)
        return loss, None, f"sum of the sites' losses by {plan.metric}"
    counted = {
        "bops": float(plan.predicted.bops),
        "avg_bits": plan.predicted.avg_bits,
        "peak_activation_mb": plan.predicted.peak_activation_bytes / 1e6,
    }[name]
    return Estimate(value=counted), None, "counted exactly: it follows from shapes and bits"
