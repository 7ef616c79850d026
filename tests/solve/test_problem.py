"""Reading, refusing and writing problems."""

from __future__ import annotations

import copy
import json
import math

import pytest
from solve_instances import small_problem

from mpq_compile.errors import PlanError
from mpq_compile.solve import Problem, evaluate, fits

VALID = {
    "groups": [
        {
            "name": "g0",
            "candidates": [
                {"name": "w8a8", "loss": 0.1, "costs": {"us": 5.0, "bytes": 100}},
                {"name": "w4a8", "loss": 0.4, "costs": {"us": 5.0, "bytes": 50}},
            ],
        },
        {"name": "g1", "candidates": [{"name": "bf16", "loss": 0, "costs": {"us": 7.0}}]},
    ],
    "budget": {"us": 40.0},
    "pairs": [{"a": "g0", "b": "g1", "loss": [[1.0], [None]], "costs": {"us": [[2.0], [3.0]]}}],
}

BROKEN = [
    ("groups", [], "groups", "empty"),
    ("groups", {}, "groups", "not a list"),
    ("groups.0", 3, "groups[0]", "not an object"),
    ("groups.0.name", "", "groups[0].name", "not a name"),
    ("groups.0.name", "g1", "groups", "used 2 times"),
    ("groups.0.colour", "red", "groups[0]", "unknown key"),
    ("groups.0.candidates", [], "groups[0].candidates", "empty"),
    ("groups.0.candidates.1.name", "w8a8", "groups[0].candidates", "used 2 times"),
    ("groups.0.candidates.1.loss", None, "groups[0].candidates[1].loss", "finite"),
    ("groups.0.candidates.1.loss", math.nan, "groups[0].candidates[1].loss", "finite"),
    ("groups.0.candidates.1.loss", True, "groups[0].candidates[1].loss", "finite"),
    ("groups.0.candidates.1.loss", 10**400, "groups[0].candidates[1].loss", "finite"),
    ("groups.0.candidates.1.los", 1.0, "groups[0].candidates[1]", "unknown key"),
    ("groups.0.candidates.1.costs", {}, "groups[0].candidates[1].costs", "'us'"),
    ("groups.0.candidates.1.costs", [], "groups[0].candidates[1].costs", "not an object"),
    ("groups.0.candidates.1.costs.us", "5", "groups[0].candidates[1].costs.us", "finite"),
    ("budget", None, "budget", "not an object"),
    ("budget.us", math.inf, "budget.us", "finite"),
    ("budget.joules", 1.0, "groups[0].candidates[0].costs", "'joules'"),
    ("pairs", {}, "pairs", "not a list"),
    ("pairs.0.a", "g7", "pairs[0].a", "unknown group"),
    ("pairs.0.b", "g0", "pairs[0]", "itself"),
    ("pairs.0.loss", [[1.0]], "pairs[0].loss", "size"),
    ("pairs.0.loss", [[1.0, 2.0], [1.0, 2.0]], "pairs[0].loss[0]", "size"),
    ("pairs.0.loss", [[1.0], [math.nan]], "pairs[0].loss[1][0]", "finite"),
    ("pairs.0.loss", 3, "pairs[0].loss", "not a list"),
    ("pairs.0.costs", [], "pairs[0].costs", "not an object"),
    ("pairs.0.costs", {"uss": [[2.0], [3.0]]}, "pairs[0].costs", "'uss'"),
    ("pairs.0.costs.us", [[2.0], "x"], "pairs[0].costs.us[1]", "not a list"),
    ("pairs.0.cost", {}, "pairs[0]", "unknown key"),
    ("solver", "exact", "problem", "unknown key"),
]


@pytest.mark.parametrize(("path", "value", "where", "message"), BROKEN)
def test_refusals_name_the_place(path: str, value: object, where: str, message: str) -> None:
    data = copy.deepcopy(VALID)
    *parents, last = path.split(".")
    at = data
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at[key]
    at[int(last) if isinstance(at, list) else last] = value
    with pytest.raises(PlanError) as caught:
        Problem.from_json(data)
    assert caught.value.where == where
    assert message in caught.value.message
    assert caught.value.expected and caught.value.found is not None and caught.value.remedy


@pytest.mark.parametrize("key", ["groups", "budget"])
def test_missing_keys(key: str) -> None:
    data = {k: v for k, v in VALID.items() if k != key}
    with pytest.raises(PlanError, match=f"'{key}' is missing"):
        Problem.from_json(data)


@pytest.mark.parametrize("data", [None, [], "problem", 3])
def test_not_an_object(data: object) -> None:
    with pytest.raises(PlanError, match="not an object"):
        Problem.from_json(data)


@pytest.mark.parametrize("seed", range(30))
def test_json_round_trip(seed: int) -> None:
    problem = small_problem(seed)
    text = json.dumps(problem.to_json(), allow_nan=False)
    assert Problem.from_json(json.loads(text)) == problem


def test_worth_of_an_assignment() -> None:
    problem = Problem.from_json(VALID)
    assert evaluate(problem, {"g0": "w8a8", "g1": "bf16"}) == (1.1, {"us": 14.0})
    assert evaluate(problem, {"g0": "w4a8", "g1": "bf16"})[0] == math.inf


@pytest.mark.parametrize(
    "assignment", [{"g0": "w8a8"}, {"g0": "w8a8", "g1": "w4a8"}, {"g0": "w8a8", "g2": "bf16"}]
)
def test_wrong_assignments(assignment: dict[str, str]) -> None:
    with pytest.raises(PlanError, match="assignment"):
        evaluate(Problem.from_json(VALID), assignment)


def test_fits_is_inclusive_with_a_relative_tolerance() -> None:
    assert fits({"us": 10.0}, {"us": 10.0})
    assert fits({"us": 10.0 + 9e-9}, {"us": 10.0})
    assert not fits({"us": 10.0 + 2e-8}, {"us": 10.0})
    assert fits({"us": -10.0 + 9e-9}, {"us": -10.0})
    assert not fits({"us": 1e-12}, {"us": 0.0})
