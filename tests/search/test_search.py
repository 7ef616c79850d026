"""Searches: known answers, budgets, resumed runs, bad input."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from search_nets import Setting, Small, setting, small, unequal
from torch import Tensor, nn

from mpq_compile.errors import CalibrationError, InfeasibleBudgetError, MpqError, PlanError
from mpq_compile.registry import SEARCHES
from mpq_compile.search.likeliest import assignment_bops, likeliest, spend
from mpq_compile.search.options import SearchOptions
from mpq_compile.search.policy import Policy
from mpq_compile.search.price import Price
from mpq_compile.training.state import TrainingState

NAMES = ("w2a8", "w4a8", "w8a8")


@cache
def layers() -> Setting:
    return unequal()


@cache
def net() -> Setting:
    return small()


def options(found: Setting, product_of_bits: float = 40.0, **more: object) -> SearchOptions:
    bops = found.bops(product_of_bits)
    return SearchOptions(**{"bops": bops, "epochs": 8} | more)  # type: ignore[arg-type]


# Known answers


@pytest.mark.parametrize("method", SEARCHES)
def test_bits_go_where_they_matter(method: str) -> None:
    """Two equal layers, room for 8 and 2 bits or twice 4: the loud one takes 8."""
    found = layers()
    policy = found.search(NAMES, options(found, method=method))
    chosen = {site.partition(":")[0]: name for site, name in policy.assignment.items()}
    assert chosen == {"loud": "w8a8", "quiet": "w2a8"}
    assert policy.method == method


def test_a_higher_price_buys_fewer_bits() -> None:
    found = net()

    def bought(price: float) -> Policy:
        how = SearchOptions(price=price, epochs=4, logit_rate=0.2, method="plain")
        return found.search(NAMES, how)

    free, dear = bought(0.0), bought(1.0)
    assert set(dear.assignment.values()) == {"w2a8"}
    assert free.bops > 2 * dear.bops


def test_the_likeliest_within_a_budget_is_the_best_of_all() -> None:
    network = net().network
    generator = torch.Generator().manual_seed(3)
    scores = {
        site.id: dict(zip(NAMES, torch.randn(3, generator=generator).log_softmax(0).tolist()))  # noqa: B905
        for site in network.sites
    }
    bops = net().bops(30)
    found = likeliest(network, scores, bops)

    def worth(assignment: dict[str, str]) -> float:
        return sum(scores[site][name] for site, name in assignment.items())

    sites = list(scores)
    every = (dict(zip(sites, names, strict=True)) for names in product(NAMES, repeat=len(sites)))
    best = max(worth(a) for a in every if assignment_bops(network, a) <= bops)
    assert assignment_bops(network, found) <= bops
    assert worth(found) == pytest.approx(best)
    free = likeliest(network, scores, None)
    assert free == {site: max(row, key=row.__getitem__) for site, row in scores.items()}


def test_what_is_left_buys_bits_and_takes_none() -> None:
    found = net()
    scores = {site: {"w2a8": -0.1, "w4a8": -2.5, "w8a8": -4.0} for site in found.sites}
    start = dict.fromkeys(found.sites, "w2a8")
    assert spend(found.network, scores, start, found.bops(64)) == dict.fromkeys(found.sites, "w8a8")
    assert spend(found.network, scores, start, found.bops(16)) == start
    # Room for one site: the one where a bit is least unlikely for its cost.
    cheap = found.sites[-1]
    scores[cheap] = {"w2a8": -0.1, "w4a8": -0.2, "w8a8": -9.0}
    macs = {site.id: site.macs for site in found.network.sites}
    room = found.bops(16) + 16 * macs[cheap]
    assert spend(found.network, scores, start, room) == {**start, cheap: "w4a8"}


@pytest.mark.parametrize("bits", [17.0, 33.0, 60.0])
def test_budgets_are_kept_and_used(bits: float) -> None:
    found = net()
    policy = found.search(NAMES, options(found, bits, epochs=3, method="plain"))
    assert policy.bops == assignment_bops(found.network, policy.assignment)
    assert policy.bops <= found.bops(bits)


def test_the_same_twice_and_another_order_with_another_seed() -> None:
    found = net()
    one, two = (found.search(NAMES, options(found, epochs=2)) for _ in range(2))
    assert one == two
    other = found.search(NAMES, options(found, epochs=2), seed=1)
    assert other.scores != one.scores


# Prices


def test_a_price_is_asked_above_the_budget_alone() -> None:
    price = Price(limit=10.0)
    assert price.at(10.0) == price.at(5.0) == 0.0
    assert Price(limit=None, fixed=0.3).at(1e9) == 0.3


def test_a_price_is_the_slope_of_a_square() -> None:
    def penalty(complexity: float) -> float:
        """κ/2 · (complexity / budget − 1)², with κ read off at twice the budget."""
        kappa = Price(limit=10.0).at(20.0) * 10
        return kappa / 2 * (complexity / 10 - 1) ** 2

    for complexity in (11.0, 14.0, 30.0):
        slope = (penalty(complexity + 1e-6) - penalty(complexity - 1e-6)) / 2e-6
        assert Price(limit=10.0).at(complexity) == pytest.approx(slope)


# Going on


@pytest.mark.parametrize("method", SEARCHES)
def test_a_stopped_search_goes_on_as_if_it_had_not(method: str, tmp_path: Path) -> None:
    found = net()
    how = options(found, method=method, epochs=3)
    whole = found.search(NAMES, how)
    state = TrainingState(path=tmp_path / "search.safetensors", run="one")
    stopping = _StopsAfter(path=state.path, run="one", epochs=2)
    with pytest.raises(KeyboardInterrupt):
        found.search(NAMES, how, state=stopping)
    assert found.search(NAMES, how, state=state) == whole
    # What is done is not done again.
    assert found.search(NAMES, how, state=state) == whole


class _StopsAfter(TrainingState):
    """Is interrupted once so many epochs are saved."""

    def __init__(self, path: Path, run: str, epochs: int) -> None:
        super().__init__(path=path, run=run)
        object.__setattr__(self, "epochs", epochs)

    def save(self, step: int, *rest: object) -> None:
        super().save(step, *rest)  # type: ignore[arg-type]
        if step == self.epochs:  # type: ignore[attr-defined]
            raise KeyboardInterrupt


def test_a_checkpoint_of_another_search_is_refused(tmp_path: Path) -> None:
    found = net()
    path = tmp_path / "search.safetensors"
    how = options(found, epochs=1)
    found.search(NAMES, how, state=TrainingState(path=path, run="one"))
    with pytest.raises(PlanError, match="checkpoint"):
        found.search(NAMES, how, state=TrainingState(path=path, run="two"))


# Bad input


def test_too_few_samples() -> None:
    found = small(63)
    with pytest.raises(CalibrationError, match="too few samples") as error:
        found.search(NAMES, options(found))
    assert (error.value.expected, error.value.found) == ("at least 64 samples", "63")


def with_labels(found: Setting, labels: Tensor) -> Setting:
    return setting(_Given(found), found.x, labels)


class _Given(nn.Module):
    """A head of four classes, whatever the labels."""

    def __init__(self, found: Setting) -> None:
        super().__init__()
        self.head = nn.Linear(found.x[0].numel(), 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@pytest.mark.parametrize("wrong", [torch.full((96,), 4), torch.full((96,), -1), torch.rand(96)])
def test_labels_that_are_no_classes(wrong: Tensor) -> None:
    found = with_labels(net(), wrong)
    with pytest.raises(CalibrationError, match="labels do not match") as error:
        found.search(NAMES, options(found))
    assert "0 to 3" in str(error.value.expected)


def test_a_search_that_diverges_names_the_site() -> None:
    found = net()
    how = SearchOptions(price=0.0, weight_rate=1e38, epochs=4)
    with pytest.raises(CalibrationError, match="diverged") as error:
        found.search(("fp32",), how)
    assert error.value.where in found.sites


def test_a_budget_below_the_cheapest_says_what_that_is() -> None:
    found = net()
    least = re.escape(f"{found.bops(16):.4g}, the cheapest")
    with pytest.raises(InfeasibleBudgetError, match=least):
        found.search(NAMES, options(found, 15.9))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "what bits may cost"),
        ({"bops": 1.0, "price": 1.0}, "what bits may cost"),
        ({"bops": 1.0, "epochs": 0}, "epochs must be positive"),
        ({"bops": 1.0, "weight_rate": math.nan}, "weight_rate must be positive"),
        ({"bops": 1.0, "method": "assga"}, "unknown search"),
        ({"bops": 1.0, "loss": "lables"}, "unknown loss"),
    ],
)
def test_options_that_make_no_search(more: dict[str, object], words: str) -> None:
    with pytest.raises(MpqError, match=words):
        SearchOptions(**more)  # type: ignore[arg-type]


# Policies


def test_a_policy_survives_json(tmp_path: Path) -> None:
    found = net()
    policy = found.search(NAMES, options(found, epochs=1))
    policy.save(tmp_path / "policy.json")
    data = json.loads((tmp_path / "policy.json").read_text(encoding="utf-8"))
    assert Policy.from_json(data) == policy
    with pytest.raises(PlanError, match="not a policy of this version"):
        Policy.from_json({**data, "version": 99})


def test_a_policy_moves_to_the_same_sites_of_another_network() -> None:
    found = net()
    policy = found.search(NAMES, options(found, epochs=1))
    torch.manual_seed(5)
    larger = setting(Small(classes=7), torch.randn(64, 3, 12, 12), torch.randint(0, 7, (64,)))
    assert policy.assignment_for(larger.network) == policy.assignment


def test_sites_that_do_not_match_are_listed() -> None:
    found = net()
    policy = found.search(NAMES, options(found, epochs=1))
    with pytest.raises(PlanError, match="site ids do not match") as error:
        policy.assignment_for(layers().network)
    message = str(error.value)
    assert "sites without an entry: loud:linear#0, quiet:linear#0" in message
    assert all(site in message for site in found.sites)
