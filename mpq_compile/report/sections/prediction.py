"""Predicted against measured latency of whole networks: anchors and rounds."""

from __future__ import annotations

from collections.abc import Sequence

from mpq_compile.report.blocks import Block, Cell, Column, Missing, Section, Table
from mpq_compile.report.evidence import Evidence
from mpq_compile.report.figures import Offset, offset_figure, offset_of
from mpq_compile.report.spelling import duration, percent
from mpq_compile.report.verdicts import (
    Estimate,
    measured_latency,
    predicted_latency,
    why_not_measured,
)
from mpq_compile.runtime.history import Comparison

_KINDS = {"anchor": "anchor, from kernels timed alone", "round": "plan that was built"}


def prediction_section(evidence: Evidence) -> Section:
    """Return a row for each whole network that was measured."""
    rows = _compared(evidence)
    blocks: list[Block] = []
    if rows:
        blocks.append(_table(rows))
    else:
        blocks.append(Missing(text=f"No whole network was measured: {why_not_measured(evidence)}."))
    if rows and evidence.history is None:
        blocks.append(
            Missing(text="What was measured before this plan was not kept with the artifact.")
        )
    return Section(
        id="prediction",
        name="Prediction",
        title="Predicted and measured latency",
        lead="Each whole network that was timed, around what was predicted of it before: the band "
        "is the predicted 95 % interval, the dot and line what was measured with its own.",
        blocks=blocks,
    )


def _compared(evidence: Evidence) -> Sequence[Comparison]:
    if evidence.history is not None and evidence.history.comparisons:
        return evidence.history.comparisons
    predicted, measured = predicted_latency(evidence), measured_latency(evidence)
    if predicted is None or measured is None or evidence.verification is None:
        return ()
    return [
        Comparison(
            kind="round",
            name="this plan",
            predicted_ms=predicted.value,
            predicted_ms_lower95=_or(predicted.lower, predicted.value),
            predicted_ms_upper95=_or(predicted.upper, predicted.value),
            measured_ms=measured.value,
            measured_ms_lower95=_or(measured.lower, measured.value),
            measured_ms_upper95=_or(measured.upper, measured.value),
            status=evidence.verification.status,
        )
    ]


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _table(rows: Sequence[Comparison]) -> Table:
    offsets = [offset_of(_predicted(row), _measured(row)) for row in rows]
    reach = max(offset.reach for offset in offsets)
    return Table(
        name="networks",
        columns=(
            Column(title="Network"),
            Column(title="Predicted", numeric=True),
            Column(title="Measured", numeric=True),
            Column(title="Off by", numeric=True),
            Column(title=f"Around the prediction, ± {percent(reach)}"),
        ),
        rows=[_row(row, offset, reach) for row, offset in zip(rows, offsets, strict=True)],
        stacked=True,
    )


def _predicted(row: Comparison) -> Estimate:
    return Estimate(
        value=row.predicted_ms, lower=row.predicted_ms_lower95, upper=row.predicted_ms_upper95
    )


def _measured(row: Comparison) -> Estimate:
    return Estimate(
        value=row.measured_ms, lower=row.measured_ms_lower95, upper=row.measured_ms_upper95
    )


def _row(row: Comparison, offset: Offset, reach: float) -> list[Cell]:
    away = offset.measured[0]
    inside = row.predicted_ms_lower95 <= row.measured_ms <= row.predicted_ms_upper95
    word = "inside the predicted interval" if inside else "outside the predicted interval"
    kind = _KINDS[row.kind] + (f", {row.status}" if row.status else "")
    label = f"measured {100 * away:+.1f} % from the prediction, {word}"
    return [
        Cell(text=row.name, note=kind),
        _spelled(_predicted(row)),
        _spelled(_measured(row)),
        Cell(text=f"{100 * away:+.1f} %", note=word),
        Cell(figure=offset_figure(offset, reach, label)),
    ]


def _spelled(estimate: Estimate) -> Cell:
    interval = f"95 %: {duration(estimate.lower)} to {duration(estimate.upper)}"
    return Cell(text=duration(estimate.value), note=interval)
