"""A small network whose whole trade-off can be enumerated."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session

ANALYTIC = "bit_serial"
NAMES = ["w8a8", "w6a8", "w4a8", "w2a8"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


X = torch.randn(64, 3, 9, 9, generator=torch.Generator().manual_seed(1))


@cache
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@cache
def session(held_out: float = 0.0) -> Session:
    recipe = Recipe(held_out=held_out)
    return Session(model(), X[:1], [X], ANALYTIC, candidates=NAMES, recipe=recipe)


def frontier(**options: Any) -> mpq.FrontierReport:
    options = {"target": ANALYTIC, "candidates": NAMES, "axis": "size_mb", **options}
    return mpq.frontier(model(), X[:1], options.pop("calibration", [X]), **options)


def all_assignments() -> list[dict[str, str]]:
    sites = [site.id for site in session().network.sites]
    return [
        dict(zip(sites, names, strict=True))
        for names in itertools.product(NAMES, repeat=len(sites))
    ]
