"""HAWQ-V3's published configurations (Yao et al., ICML 2021) from its published arrays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mpq_compile.solve import CandidateTerm, Group, Problem, solve
from mpq_compile.solve.certificate import check

FILE = Path(os.environ.get("MPQ_DATA", "../shared/data")) / "hawq_v3.json"

pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is not there")
NETWORKS = ("resnet18", "resnet50")
LEVELS = ("0.75", "0.5", "0.25")


def hawq_problem(network: dict[str, Any], limit: float) -> Problem:
    """Return the choice of 4 or 8 bits per layer, tied layers as one group."""
    ties = {layer: pair[0] for pair in network["tied_layers"] for layer in pair}
    members: dict[int, list[int]] = {}
    for layer in range(len(network["loss_4bit"])):
        members.setdefault(ties.get(layer, layer), []).append(layer)
    groups = tuple(
        Group(
            name=str(first),
            candidates=tuple(
                CandidateTerm(
                    name=str(bits),
                    loss=sum(network[f"loss_{bits}bit"][i] for i in layers),
                    costs={"latency": sum(network[f"latency_{bits}bit"][i] for i in layers)},
                )
                for bits in (4, 8)
            ),
        )
        for first, layers in members.items()
    )
    return Problem(groups=groups, budget={"latency": limit})


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("solver", ["exact", "milp"])
def test_published_bits(name: str, level: str, solver: str) -> None:
    network = json.loads(FILE.read_text())["networks"][name]
    published = network["published"][level]
    problem = hawq_problem(network, published["latency_limit"])
    solution = solve(problem, solver)
    ties = {layer: pair[0] for pair in network["tied_layers"] for layer in pair}
    bits = [int(solution.assignment[str(ties.get(i, i))]) for i in range(len(published["bits"]))]
    assert bits == published["bits"]
    assert check(problem, solution).ok


def test_optimality_is_proven() -> None:
    network = json.loads(FILE.read_text())["networks"]["resnet50"]
    problem = hawq_problem(network, network["published"]["0.5"]["latency_limit"])
    assert check(problem, solve(problem)).optimal
