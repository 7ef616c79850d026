"""The report: one HTML file that loads nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mpq_compile import __version__
from mpq_compile.errors import ArtifactError
from mpq_compile.report.evidence import Evidence, Source, evidence_of
from mpq_compile.report.frontier import FrontierReport
from mpq_compile.report.sections import SECTIONS
from mpq_compile.report.spelling import BOUNDS, UNKNOWN, bits, duration, number, size
from mpq_compile.report.verdicts import (
    measured_latency,
    predicted_latency,
    verdicts,
    worst,
)

TEMPLATES = Path(__file__).with_name("templates")
# The one line on top of the page, by the worst verdict.
_HEADLINES = {
    "kept": "Within budget",
    "missed": "Budget missed",
    "inconclusive": "Inconclusive",
    "not measured": "Not measured",
    None: "No budget",
}


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the few numbers on top of the page."""

    label: str
    value: str
    note: str


def write_report(
    source: Source,
    path: str | Path,
    title: str | None = None,
    frontiers: Sequence[FrontierReport] = (),
) -> Path:
    """Write the report of a network, a plan or an artifact's folder as one HTML file.

    Args:
        source: A compiled network, a plan, or the folder of an artifact.
        path: The file.
        title: Name of the network; None for the folder's.
        frontiers: Of the same network, from :func:`mpq_compile.frontier`; that of size is
            computed from the plan's own table where none is given.

    Raises:
        ArtifactError: The folder is no artifact, or the file cannot be written.
    """
    text = report_html(evidence_of(source, title, frontiers))
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArtifactError(
            "the report cannot be written",
            where=str(path),
            expected="a file in a folder that exists",
            found=error.strerror or error,
            remedy="create the folder, or choose another file",
        ) from error
    return Path(path)


def report_html(evidence: Evidence) -> str:
    """Return the page."""
    found = verdicts(evidence)
    word = worst(found)
    reasons = [f"{BOUNDS[v.bound].title}: {v.reason}" for v in found if v.word == word != "kept"]
    return (
        environment()
        .get_template("page.html")
        .render(
            title=evidence.title,
            subtitle=_subtitle(evidence),
            verdict=word,
            headline=_HEADLINES[word],
            reason="; ".join(reasons),
            tiles=tiles(evidence),
            sections=[section(evidence) for section in SECTIONS],
            version=__version__,
        )
    )


@cache
def environment() -> Environment:
    """Return where templates come from; everything in them is escaped."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _subtitle(evidence: Evidence) -> str:
    plan = evidence.plan
    counts = Counter(plan.assignment.values()).most_common()
    chosen = ", ".join(f"{count} × {name}" for name, count in counts)
    return f"{plan.target} · {len(plan.assignment)} sites: {chosen}"


def tiles(evidence: Evidence) -> list[Tile]:
    """Return latency, size, width of weights and loss, as far as they are known."""
    plan = evidence.plan
    on_disk = evidence.stored_bytes
    stored = plan.predicted.size_bytes if on_disk is None else on_disk
    return [
        _latency_tile(evidence),
        Tile(
            label="Stored size",
            value=size(stored),
            note=_promised(evidence, "size_mb") or ("counted" if on_disk is None else "on disk"),
        ),
        Tile(
            label="Average weight",
            value=bits(plan.predicted.avg_bits),
            note=_promised(evidence, "avg_bits") or "of the weights that can be quantized",
        ),
        Tile(label="Loss", value=number(plan.loss, 3), note=_proven(evidence)),
    ]


def _latency_tile(evidence: Evidence) -> Tile:
    measured, predicted = measured_latency(evidence), predicted_latency(evidence)
    promised = _promised(evidence, "latency_ms")
    if measured is not None:
        upper = f"95 %: up to {duration(measured.upper)}"
        note = f"{upper}; {promised}" if promised else upper
        return Tile(label="Latency, measured", value=duration(measured.value), note=note)
    if predicted is None:
        return Tile(label="Latency", value=UNKNOWN, note="not measured")
    note = f"not measured; {promised}" if promised else "not measured"
    return Tile(label="Latency, predicted", value=duration(predicted.value), note=note)


def _promised(evidence: Evidence, name: str) -> str:
    limit = evidence.plan.budget.get(name)
    return "" if limit is None else f"promised ≤ {BOUNDS[name].spell(limit)}"


def _proven(evidence: Evidence) -> str:
    plan = evidence.plan
    if plan.loss is None:
        return "not measured"
    status = plan.certificate.get("status")
    proof = {"optimal": "proven optimal", "feasible": "with a bound, below"}.get(str(status))
    return f"by {plan.metric}, {proof or 'no proof'}"
