"""`mpq frontier`, and `mpq plan` with the user's own measure, on an analytic target."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from verbs import Mpq

ANALYTIC = ("--target", "bit_serial", "--candidates", "w8a8,w6a8,w4a8,w2a8")
MEASURE = """
import numpy as np
import torch

IMAGES = torch.from_numpy(np.load({data!r})["x"])


def score(net):
    print("the measure speaks")
    return -float(net(IMAGES).square().mean())


VALUE = 3
"""


@pytest.fixture
def measure(place: Path) -> str:
    """A file with a measure, as ``--evaluate`` takes it."""
    path = place / "measure.py"
    path.write_text(MEASURE.format(data=str(place / "data.npz")), encoding="utf-8")
    return f"{path}:score"


def test_frontier_as_json(mpq: Mpq, job: tuple[str, ...], measure: str, tmp_path: Path) -> None:
    pictures = (tmp_path / "f.png", tmp_path / "f.html")
    plots = tuple(word for path in pictures for word in ("--plot", path))
    options = ("--axis", "bops", "--points", "3", "--evaluate", measure, *plots, "--json")
    result = mpq("frontier", *job, *ANALYTIC, *options)
    assert result.code == 0, result.err
    found = result.json
    assert found["axis"] == "bops" and found["complete"]
    assert sum(point["drop"] is not None for point in found["points"]) == 3
    assert found["float_score"] is not None
    assert [path.stat().st_size > 1000 for path in pictures] == [True, True]
    assert "the measure speaks" in result.err and "the measure speaks" not in result.out


def test_frontier_for_people(mpq: Mpq, job: tuple[str, ...]) -> None:
    result = mpq("frontier", *job, *ANALYTIC, "--points", "2", "--bops", "300000")
    assert result.code == 0, result.err
    assert "breakpoints" in result.out and "all w2a8" in result.out
    assert "kl [nats]" in result.out


def test_an_assignment_is_listed_once(mpq: Mpq, job: tuple[str, ...]) -> None:
    """The uniform assignments at both ends are points of the frontier too."""
    result = mpq("frontier", *job, *ANALYTIC, "--points", "4")
    assert result.code == 0, result.err
    assert result.out.count("all w2a8") == result.out.count("all w8a8") == 1
    assert not re.search(r"│\s*\d+ × w[28]a8\s*│", result.out)


def test_the_default_axis_is_size_and_no_point_need_be_measured(
    mpq: Mpq, job: tuple[str, ...]
) -> None:
    result = mpq("frontier", *job, *ANALYTIC, "--points", "0", "--json")
    assert result.code == 0, result.err
    assert result.json["axis"] == "size_mb"
    assert all(point["drop"] is None for point in result.json["points"])


def test_plan_within_a_drop_of_the_users_measure(
    mpq: Mpq, job: tuple[str, ...], measure: str
) -> None:
    options = ("--minimize", "size", "--max-drop", "0.01", "--evaluate", measure)
    result = mpq("plan", *job, *ANALYTIC, *options, "--evaluations", "5", "--json")
    assert result.code == 0, result.err
    drop = result.json["certificate"]["drop"]
    assert drop["measure"] == "evaluate" and drop["value"] <= 0.01 and drop["measured"] <= 5


def test_plan_within_a_loss(mpq: Mpq, job: tuple[str, ...]) -> None:
    result = mpq("plan", *job, *ANALYTIC, "--minimize", "bops", "--max-loss", "0.01", "--json")
    assert result.code == 0, result.err
    assert result.json["loss"] <= 0.01
    assert result.json["budget"] == {"max_loss": 0.01}


@pytest.mark.parametrize(
    ("options", "where", "remedy"),
    [
        (("--axis", "sise_mb"), None, "'size_mb'"),
        (("--evaluate", "kll"), "--evaluate", "'kl'"),
        (("--evaluate", "nothing.py:f"), "--evaluate", "path"),
        (("--plot", "picture.jpg"), "picture.jpg", ".png"),
        (("--plot", "no/folder/picture.png"), "no/folder/picture.png", "folder"),
        (("--evaluate", "accuracy", "--measure"), None, "leave out"),
    ],
)
def test_wrong_options(
    mpq: Mpq, job: tuple[str, ...], options: tuple[str, ...], where: str | None, remedy: str
) -> None:
    result = mpq("frontier", *job, *ANALYTIC, *options, "--json")
    assert result.code == 2
    assert where is None or where in result.json["where"]
    assert remedy in result.json["remedy"]


def test_a_function_that_is_not_there(mpq: Mpq, job: tuple[str, ...], measure: str) -> None:
    for name in ("scores", "VALUE"):
        wrong = measure.replace(":score", f":{name}")
        result = mpq("frontier", *job, *ANALYTIC, "--evaluate", wrong, "--json")
        assert result.code == 2 and result.json["error"] == "PlanError"
    assert "score" in result.json["remedy"]


def test_frontier_on_two_axes(mpq: Mpq, job: tuple[str, ...], tmp_path: Path) -> None:
    picture = tmp_path / "map.png"
    options = ("--axis", "size_mb,bops", "--points", "3", "--plot", picture)
    found = mpq("frontier", *job, *ANALYTIC, *options, "--json").json
    assert found["axes"] == {"size_mb": "MB", "bops": "BOPs"}
    assert all(set(point["costs"]) >= {"size_mb", "bops"} for point in found["points"])
    assert picture.stat().st_size > 1000
    shown = mpq("frontier", *job, *ANALYTIC, "--axis", "size_mb,bops", "--points", "0")
    assert shown.code == 0 and "size_mb" in shown.out and "bops" in shown.out
