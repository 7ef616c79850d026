"""What a recipe refuses: names and numbers of the user's, whatever their type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpq_compile.errors import CalibrationError, MpqError
from mpq_compile.recipe import Recipe

NAMED = ("observer", "correction", "rounding", "sensitivity_on", "equalize", "migration")


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("value", ["nosuch", True, None, 3, ["mse"]])
def test_what_is_no_name_is_refused_with_the_names(name: str, value: Any) -> None:
    with pytest.raises(MpqError) as caught:
        Recipe(**{name: value})
    assert caught.value.found == repr(value)
    assert "one of" in str(caught.value.remedy)


@pytest.mark.parametrize("samples", [0, -3, 2.5, "all", True, [8]])
def test_samples_are_a_whole_number(samples: Any) -> None:
    with pytest.raises(CalibrationError) as caught:
        Recipe(samples=samples)
    assert (caught.value.where, caught.value.found) == ("samples", repr(samples))


@pytest.mark.parametrize("held_out", [-0.1, 0.6, float("nan"), "half", True])
def test_the_share_that_is_held_out_is_a_number(held_out: Any) -> None:
    with pytest.raises(CalibrationError) as caught:
        Recipe(held_out=held_out)
    assert (caught.value.where, caught.value.found) == ("held_out", repr(held_out))


def test_numbers_of_numpy_will_do() -> None:
    recipe = Recipe(samples=np.int64(8), held_out=np.float64(0.25))  # type: ignore[arg-type]
    assert Recipe.of_plan(recipe.provenance()) == recipe
