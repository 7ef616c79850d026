"""What the schema cannot say of a profile. Each rule takes valid data and yields findings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mpq_compile.cost.profile_file import Document, Finding, schema_findings
from mpq_compile.errors import ProfileError, nearest
from mpq_compile.kernels.tier import TIERS
from mpq_compile.types import Candidate


def problems(document: Document) -> list[ProfileError]:
    """Return all that is wrong with a document, in the order of its lines."""
    findings = schema_findings(document.data)
    if not findings:
        findings = [finding for rule in _RULES for finding in rule(document.data)]
        findings += _device_file(document)
    return [document.error(f) for f in sorted(findings, key=lambda f: document.line(f.keys))]


def _device_file(document: Document) -> Iterator[Finding]:
    """The file of an accelerator's class is there; it is imported when something is measured."""
    name = str(document.data.get("device") or "").rpartition(":")[0]
    path = document.path.parent / name
    if name.endswith(".py") and not path.is_file():
        yield Finding(
            keys=("device",),
            message="no such file of Python code",
            expected="a file whose path is relative to this one",
            found=f"nothing at {path}",
            remedy="correct the path before the colon",
        )


def expanded(rule: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the candidate names of a rule, at each of its group sizes where it has any."""
    sizes = rule.get("group_sizes")
    if not sizes:
        return tuple(rule["candidates"])
    parsed = [Candidate.parse(name) for name in rule["candidates"]]
    return tuple(
        f"w{c.weight_bits}a{c.activation_bits}g{size}{'d' if c.dynamic else ''}"
        for c in parsed
        for size in sizes
    )


def rate_name(candidate: Candidate) -> str:
    """Return the entry of a rate table: the name without group size and ``d``."""
    if candidate.is_float:
        return candidate.name
    return f"w{candidate.weight_bits}a{candidate.activation_bits}"


def _rules_of(data: Any) -> Iterator[tuple[tuple[str | int, ...], str, Any]]:
    for operator, rules in data["operators"].items():
        for index, rule in enumerate(rules):
            yield ("operators", operator, index), operator, rule


def _finite_numbers(data: Any) -> Iterator[Finding]:
    """YAML writes ``.inf`` and ``.nan``, which no number of a profile may be."""
    todo: list[tuple[tuple[str | int, ...], Any]] = [((), data)]
    while todo:
        keys, value = todo.pop()
        if isinstance(value, dict):
            todo += [((*keys, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            todo += [((*keys, index), item) for index, item in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            yield Finding(
                keys=keys,
                message=f"{keys[-1]} is not finite",
                expected="a finite number",
                found=value,
                remedy="write a number, or null where it is allowed",
            )


def _known_tiers(data: Any) -> Iterator[Finding]:
    for index, name in enumerate(data.get("tiers", ())):
        if name not in TIERS:
            yield Finding(
                keys=("tiers", index),
                message=f"unknown tier {name!r}",
                expected=", ".join(TIERS),
                found=repr(name),
                remedy=nearest(name, TIERS),
            )


def _grouped_candidates(data: Any) -> Iterator[Finding]:
    """Groups run along a row of integer weights, of a linear layer or an embedding alone."""
    for keys, operator, rule in _rules_of(data):
        for name in rule["candidates"]:
            candidate = Candidate.parse(name)
            named, listed = candidate.group_size is not None, "group_sizes" in rule
            if (named or listed) and operator not in ("linear", "embedding"):
                found, remedy = f"{name} for {operator}", "leave out the group"
            elif listed and (named or candidate.is_float):
                found, remedy = f"{name} with group_sizes", "put it in a rule of its own"
            else:
                continue
            yield Finding(
                keys=keys,
                message="a group size where none is possible",
                expected="group sizes for integer weights of linear and embedding, given once",
                found=found,
                remedy=remedy,
            )


def _ordered_rows(data: Any) -> Iterator[Finding]:
    for keys, _, rule in _rules_of(data):
        least, most = rule.get("min_rows", 1), rule.get("max_rows")
        if most is not None and most < least:
            yield Finding(
                keys=(*keys, "max_rows"),
                message="no row count satisfies this rule",
                expected=f"max_rows ≥ min_rows ({least})",
                found=most,
                remedy="raise max_rows, or lower min_rows",
            )


def _supported_defaults(data: Any) -> Iterator[Finding]:
    supported = {name for _, _, rule in _rules_of(data) for name in expanded(rule)}
    for index, name in enumerate(data["defaults"]):
        if name not in supported:
            yield Finding(
                keys=("defaults", index),
                message=f"the default {name!r} is supported for no operator",
                expected="a candidate that stands under operators",
                found=repr(name),
                remedy=nearest(name, supported),
            )


def _complete_table(data: Any) -> Iterator[Finding]:
    table = (data.get("analytic") or {}).get("rate", {}).get("table")
    if table is None:
        return
    named = {rate_name(Candidate.parse(n)) for _, _, r in _rules_of(data) for n in expanded(r)}
    missing = sorted(named - set(table))
    if missing:
        yield Finding(
            keys=("analytic", "rate", "table"),
            message="the table of rates lacks candidates that operators support",
            expected=", ".join(missing),
            found=", ".join(table),
            remedy="add their rates in 10⁹ MAC/s, or drop the candidates",
        )


def _known_sources(data: Any) -> Iterator[Finding]:
    """A source belongs to something that the profile says."""
    for name in data.get("sources", {}):
        value = data
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            yield Finding(
                keys=("sources", name),
                message=f"a source for {name!r}, which the profile does not give",
                expected="keys from the root with dots between, such as energy.pj_per_byte",
                found=repr(name),
                remedy="correct the name, or leave the source out",
            )


_RULES: tuple[Callable[[Any], Iterator[Finding]], ...] = (
    _finite_numbers,
    _known_tiers,
    _grouped_candidates,
    _ordered_rows,
    _supported_defaults,
    _complete_table,
    _known_sources,
)
