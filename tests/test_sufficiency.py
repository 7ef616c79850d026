"""Stability of the assignment: parts of the data against all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session
from mpq_compile.sufficiency import Part, Stability, growing, stability_of

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(64, 3, 8, 8, generator=GENERATOR)
BUDGET = mpq.Budget(avg_bits=4.5)
OPTIONS = {"target": "bit_serial", "candidates": ["w8a8", "w4a8", "w2a8"]}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


def session(data: Tensor = X, seed: int = 0) -> Session:
    return Session(model(), data[:1], [data], seed=seed, **OPTIONS)  # type: ignore[arg-type]


def test_parts_grow_and_hold_each_other() -> None:
    parts = [torch.cat([b.inputs[0] for b in part]) for part in growing(session())]
    assert [len(part) for part in parts] == [8, 16, 32]
    for shorter, longer in zip(parts, parts[1:], strict=False):
        assert torch.equal(longer[: len(shorter)], shorter)
    assert not torch.equal(parts[0], X[:8]), "drawn, not the first"


def test_the_seed_draws_the_parts() -> None:
    first, again, other = (next(iter(growing(session(seed=s)))) for s in (0, 0, 1))
    assert torch.equal(first[0].inputs[0], again[0].inputs[0])
    assert not torch.equal(first[0].inputs[0], other[0].inputs[0])


def test_samples_that_are_all_alike_are_enough() -> None:
    # Without the fits of channels, for which 32 rows of a linear layer are too few.
    alike = Session(
        *(model(), X[:1], [X[:1].repeat(64, 1, 1, 1)]),
        **OPTIONS,  # type: ignore[arg-type]
        recipe=Recipe(correction="none"),
    )
    found = stability_of(alike, BUDGET)
    assert found.enough == 8
    assert all(part.agreement == 1 and part.excess == 0 for part in found.parts)
    assert all(part.correlation > 0.999 for part in found.parts)
    assert "stable to 1% of its loss from 8 samples of 64" in found.verdict


def test_no_part_loses_less_than_all_samples_by_their_own_table() -> None:
    found = mpq.stability(model(), X[:1], [X], budget={"avg_bits": 4.5}, **OPTIONS)  # type: ignore[arg-type]
    assert [part.samples for part in found.parts] == [8, 16, 32]
    assert all(part.excess >= -1e-9 for part in found.parts)
    assert found == mpq.stability(model(), X[:1], [X], budget=BUDGET, **OPTIONS)  # type: ignore[arg-type]


def test_half_that_leads_elsewhere_is_not_enough() -> None:
    part = Part(samples=32, agreement=0.5, excess=0.2, correlation=0.9)
    found = Stability(samples=64, parts=(part,), tolerance=0.01, seed=0)
    assert found.enough is None
    assert "not stable yet at 64 samples" in found.verdict and "20.0% more" in found.verdict
    assert replace(found, tolerance=0.3).enough == 32


def test_one_sample_cannot_be_divided() -> None:
    with pytest.raises(mpq.CalibrationError, match="too few samples"):
        stability_of(session(X[:1]), BUDGET)


def test_a_plan_says_whether_there_is_enough_data() -> None:
    keywords = {**OPTIONS, "budget": BUDGET}
    plan = mpq.plan(model(), X[:1], [X[:16]], **keywords)  # type: ignore[arg-type]
    text = " ".join(plan.notes)
    assert "cannot be told from one batch of 16 samples" in text
    assert "16 given, 64 needed" in text
    plan = mpq.plan(model(), X[:1], X.split(8), **keywords)  # type: ignore[arg-type]
    assert any(note.startswith("ranges are") for note in plan.notes)
    assert not any("too few" in note for note in plan.notes)


def test_a_plan_records_how_many_samples_it_used() -> None:
    plan = mpq.plan(model(), X[:1], [X], samples=8, **OPTIONS)  # type: ignore[arg-type]
    assert plan.provenance["samples"] == "8"
    assert "samples" not in mpq.plan(model(), X[:1], [X], **OPTIONS).provenance  # type: ignore[arg-type]
    with pytest.raises(mpq.CalibrationError, match="no samples"):
        mpq.plan(model(), X[:1], [X], samples=0, **OPTIONS)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_drop", "max_loss"])
def test_a_bound_on_the_loss_is_refused(name: str) -> None:
    with pytest.raises(mpq.PlanError) as caught:
        stability_of(session(), mpq.Budget(**{name: 0.5}))
    assert name in str(caught.value) and "size_mb" in str(caught.value)
