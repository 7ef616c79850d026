"""Evidence for the tests of reports: a small plan with hostile names, and measurements of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from mpq_compile.report.evidence import Evidence
from mpq_compile.runtime.history import Comparison, History
from mpq_compile.runtime.trace import Trace, TracedStep
from mpq_compile.types import PLAN_VERSION, AuditRow, Candidate, Plan, Predicted, Verification

HOSTILE = "</script><img src=x onerror=alert(1)>:conv2d#0"
SITES = (HOSTILE, "block'1\".conv:conv2d#0", "fc:linear#0")
NAMES = ("w8a8", "w4a8", "w2a8")
CHOICE = dict(zip(SITES, ("w8a8", "w4a8", "w4a8"), strict=True))


def table(sites: tuple[str, ...], choice: dict[str, str], groups: dict[str, str]) -> list[dict]:
    """Return rows as plans hold them: fewer bits lose more and are smaller."""
    return [
        {
            "site": site,
            "candidate": name,
            "loss": (1 + i % 5) * 2.0 ** -Candidate.parse(name).weight_bits,
            "spread": 0.001,
            "latency_us": 3.0 + i % 7 + 0.1 * Candidate.parse(name).weight_bits,
            "latency_source": "measured",
            "size_bytes": 10.0 * (1 + i % 11) * Candidate.parse(name).weight_bits,
            "chosen": choice[site] == name,
            "group": groups.get(site, site),
        }
        for i, (site, name) in enumerate(itertools.product(sites, NAMES))
    ]


def plan(
    choice: dict[str, str] = CHOICE, groups: dict[str, str] | None = None, **fields: Any
) -> Plan:
    """Return a plan for this machine within two bounds."""
    rows = table(tuple(choice), choice, groups or {})
    chosen = [row for row in rows if row["chosen"]]
    values: dict[str, Any] = {
        "version": PLAN_VERSION,
        "assignment": choice,
        "loss": sum(row["loss"] for row in chosen),
        "predicted": Predicted(
            latency_ms=0.523,
            latency_ms_lower95=0.498,
            latency_ms_upper95=0.548,
            size_bytes=round(sum(row["size_bytes"] for row in chosen)) + 36,
            bops=123_456_789,
            avg_bits=4.75,
            peak_activation_bytes=2048,
        ),
        "budget": {"latency_ms": 0.6, "size_mb": 0.1},
        "target": "local",
        "metric": "sqnr",
        "solver": "exact",
        "certificate": {
            "status": "optimal",
            "bound": sum(row["loss"] for row in chosen),
            "gap": 0.0,
            "wall_s": 0.0123,
            "multipliers": {"latency_us": 0.0, "size_bytes": 2.5e-5},
        },
        "table": rows,
        "constraints": {"fc": "w4a8"},
        "notes": ["a note <b>in bold</b>"],
        "seed": 7,
        "provenance": {"mpq_compile": "9.9.9", "kernels": "cafe0123", "rounding": "gptq"},
    }
    return Plan(**{**values, **fields})


def verification(**fields: Any) -> Verification:
    """Return a measurement that keeps the budget of :func:`plan`."""
    values: dict[str, Any] = {
        "latency_ms": 0.531,
        "latency_ms_lower95": 0.527,
        "latency_ms_upper95": 0.541,
        "latency_p95_ms": 0.577,
        "latency_p95_ms_upper95": 0.583,
        "latency_p99_ms": 0.611,
        "samples": 54321,
        "processes": 5,
        "drift": 0.034,
        "reference_drift": 0.021,
        "repeated": 3,
        "memory_bytes": 7_654_321,
        "energy_mj": None,
        "energy_source": None,
        "within_budget": True,
        "status": "accepted",
        "rounds": 2,
        "device": "a-device-2c",
        "process_spread": 0.011,
    }
    return Verification(**{**values, **fields})


def history() -> History:
    """Return an anchor and a round."""
    anchor = Comparison(
        kind="anchor",
        name="all w8a8",
        predicted_ms=0.701,
        predicted_ms_lower95=0.611,
        predicted_ms_upper95=0.791,
        measured_ms=0.822,
        measured_ms_lower95=0.811,
        measured_ms_upper95=0.833,
    )
    last = replace(anchor, kind="round", name="round 2", measured_ms=0.713, status="accepted")
    return History(comparisons=(anchor, last), time="2030-01-02T03:04:05+00:00")


def trace() -> Trace:
    """Return what a kernel took for each site, and two of a node in float."""
    names = [*SITES, "softmax", "softmax"]
    steps = [
        TracedStep(name=name, kernel=f"k_traced_{i}", time_us=11.25 + i, busy=0.5 + i / 16)
        for i, name in enumerate(names)
    ]
    return Trace(steps=steps, total_us=66.25, call_us=71.5, calls=4321, threads=2)


def evidence(**fields: Any) -> Evidence:
    """Return everything that can be known of a built and measured network."""
    audit = [
        AuditRow(
            site=site,
            requested=name,
            stored_bits=int(name[1]),
            compute="int8",
            kernel=f"gemm_{i}",
            tier="avx512_vnni",
        )
        for i, (site, name) in enumerate(CHOICE.items())
    ]
    values: dict[str, Any] = {
        "title": "net <i>of</i> three",
        "plan": plan(),
        "timed": True,
        "audit": audit,
        "notes": ["the compiler's note"],
        "build": {"threads": "2"},
        "stored_bytes": 76_543,
        "verification": verification(),
        "history": history(),
        "trace": trace(),
    }
    return Evidence(**{**values, **fields})


def bare(**fields: Any) -> Evidence:
    """Return what is known of a plan alone."""
    nothing = {"audit": (), "notes": (), "build": {}, "stored_bytes": None}
    measured = {"verification": None, "history": None, "trace": None}
    return evidence(**{**nothing, **measured, **fields})


def large(count: int) -> Evidence:
    """Return a network of many sites."""
    choice = {f"features.{i // 6}.block.{i % 6}:conv2d#0": NAMES[i % 3] for i in range(count)}
    first = evidence().audit[0]
    audit = [replace(first, site=site, requested=name) for site, name in choice.items()]
    return evidence(plan=plan(choice), audit=audit)
