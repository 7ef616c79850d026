"""What makes a problem valid, beyond the types of its JSON form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mpq_compile.errors import nearest
from mpq_compile.solve.reading import (
    read_list,
    read_matrix,
    read_number,
    read_numbers,
    refuse,
)

if TYPE_CHECKING:
    from mpq_compile.solve.problem import Group, Pair, Problem


def check_unique(names: Sequence[str], where: str) -> None:
    """Refuse a name that is used twice."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        refuse(
            where,
            f"name {name!r} is used {count} times",
            expected="names that differ",
            found=name,
            remedy="rename all but one",
        )


def check_group(group: Group, where: str, budget: Mapping[str, float]) -> None:
    """Refuse a group whose candidates are not distinct, finite and priced on every budget."""
    read_list(group.candidates, f"{where}.candidates", nonempty=True)
    check_unique([c.name for c in group.candidates], f"{where}.candidates")
    for i, candidate in enumerate(group.candidates):
        place = f"{where}.candidates[{i}]"
        read_number(candidate.loss, f"{place}.loss")
        read_numbers(candidate.costs, f"{place}.costs")
        for axis in budget:
            if axis not in candidate.costs:
                _refuse_axis(f"{place}.costs", axis, candidate.costs)


def _refuse_axis(where: str, axis: str, costs: Mapping[str, float]) -> None:
    refuse(
        where,
        f"cost {axis!r}, which the budget names, is missing",
        expected=f"a number under {axis!r}",
        found=", ".join(costs) or "no costs",
        remedy=f"add {axis!r}, or take it out of the budget",
    )


def check_pair(problem: Problem, pair: Pair, where: str) -> None:
    """Refuse a pair of unknown groups, or with matrices of the wrong size."""
    sizes = {g.name: len(g.candidates) for g in problem.groups}
    for end in ("a", "b"):
        name = getattr(pair, end)
        if name not in sizes:
            refuse(
                f"{where}.{end}",
                f"unknown group {name!r}",
                expected="the name of a group",
                found=name,
                remedy=nearest(name, sizes),
            )
    if pair.a == pair.b:
        refuse(
            where,
            f"group {pair.a!r} is paired with itself",
            expected="two groups",
            found=pair.a,
            remedy="add the term to the group's candidates",
        )
    known = {a for g in problem.groups for c in g.candidates for a in c.costs}
    for axis in pair.costs:
        if axis not in known:
            refuse(
                f"{where}.costs",
                f"no candidate has the cost {axis!r}",
                expected="a cost that candidates have",
                found=axis,
                remedy=nearest(axis, known),
            )
    matrices = {f"costs.{axis}": matrix for axis, matrix in pair.costs.items()}
    if pair.loss is not None:
        matrices["loss"] = pair.loss
    for key, matrix in matrices.items():
        read_matrix(matrix, f"{where}.{key}", rows=sizes[pair.a], columns=sizes[pair.b])
