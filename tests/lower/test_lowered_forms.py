"""Forms that models are written with, compiled: the same as the oracle."""

from __future__ import annotations

import pytest
import torch
from form_nets import FORMS, IMAGES, Bags, Pictured, Written, seeded
from torch import nn

import mpq_compile as mpq
from mpq_compile.selfcheck import agreement_decibels

# The others run with ``pytest -m slow``.
SOME = ("filled", "one_for_each_sample", "pairs", "windows", "top", "bilinear", "overlapping")
FLOAT_DECIBELS = 100.0


def cases(names):
    return [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in names]


def agrees(net: nn.Module, *inputs: torch.Tensor) -> None:
    network = mpq.assign(net, tuple(value[:1] for value in inputs), [inputs], "w8a8")
    found, expected = network(*inputs), network.reference(*inputs)
    assert found.shape == expected.shape
    assert agreement_decibels(found, expected) > FLOAT_DECIBELS


@pytest.mark.parametrize("name", cases(FORMS))
def test_forms_equal_the_oracle(name: str) -> None:
    torch.manual_seed(0)
    agrees(Written(FORMS[name]).eval(), seeded(3, 6, 8))


@pytest.mark.parametrize("name", cases(IMAGES))
def test_forms_of_images_equal_the_oracle(name: str) -> None:
    torch.manual_seed(0)
    net, x = Pictured(IMAGES[name]).eval(), seeded(2, 3, 6, 8)
    net(x)
    agrees(net, x)


def test_bags_equal_the_oracle() -> None:
    torch.manual_seed(0)
    rows = [torch.randint(0, 20, (4, 5)) for _ in range(2)]
    agrees(Bags("mean").eval(), *rows)
