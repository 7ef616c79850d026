"""Labels are classes of the output they are compared with, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mpq_compile.errors import CalibrationError
from mpq_compile.sensitivity.labels import class_index

SHAPE = (2, 3, 2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32])
def test_an_index_picks_the_scores_of_the_labels(dtype: torch.dtype) -> None:
    scores = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    picked = scores.gather(1, class_index(torch.tensor([[0, 2], [1, 1]]).to(dtype), SHAPE))
    assert torch.equal(picked[0, 0], scores[0, [0, 2], [0, 1]])
    assert torch.equal(picked[1, 0], scores[1, 1])


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (torch.tensor([[0, 3], [1, 1]]), "the label 3"),
        (torch.tensor([[0, 1], [-100, 1]]), "the label -100"),
        (torch.tensor([[0, 0.5], [1, 1]]), "the label 0.5"),
        (torch.tensor([[0, float("nan")], [1, 1]]), "the label nan"),
        (torch.tensor([0, 1]), "[2]"),
    ],
)
def test_what_is_no_class_is_named(labels: Tensor, found: str) -> None:
    with pytest.raises(CalibrationError, match="labels do not match") as caught:
        class_index(labels, SHAPE, "batch 3")
    assert (caught.value.where, caught.value.found) == ("batch 3", found)
    assert "0 to 2" in str(caught.value.expected) and "3 classes" in str(caught.value.expected)
