"""A network that does not compute what its oracle computes is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from operator_nets import CASES
from torch import Tensor

from mpq_compile.errors import LoweringError
from mpq_compile.pipeline import assign_session
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.selfcheck import agreement_decibels, check_against_oracle
from mpq_compile.session import Session


@cache
def session() -> Session:
    case = CASES["mobile"]
    return Session(case.model(), case.inputs(1), [case.inputs(16, seed=1)])


def with_oracle_of(candidate: str, other: str) -> CompiledNetwork:
    """Return a network of ``candidate`` that claims the oracle of ``other``."""
    network = assign_session(session(), candidate)
    reference = assign_session(session(), other).reference
    return CompiledNetwork(network.folder, reference, network._owner)


def test_the_right_oracle_agrees() -> None:
    for name in ("w8a8", "bf16"):
        check_against_oracle(assign_session(session(), name), CASES["mobile"].inputs(3))


def test_integers_must_agree_bit_for_bit() -> None:
    with pytest.raises(LoweringError, match="oracle") as caught:
        check_against_oracle(with_oracle_of("w8a8", "w7a8"), CASES["mobile"].inputs(1))
    assert caught.value.expected == "equal bits" and caught.value.remedy


def test_floats_must_agree_closely() -> None:
    with pytest.raises(LoweringError, match="oracle") as caught:
        check_against_oracle(with_oracle_of("fp32", "w2a8"), CASES["mobile"].inputs(1))
    assert "dB" in str(caught.value.found)


def test_floats_may_differ_by_what_last_bits_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 dB are enough for a network that makes much of its last bits, and for no other."""
    network = assign_session(session(), "fp32")
    (x,) = CASES["mobile"].inputs(1)
    wrong = 1 + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    def oracle_and_device(oracle: Callable[[Tensor], Tensor]) -> CompiledNetwork:
        monkeypatch.setattr(CompiledNetwork, "reference", lambda self, value: oracle(value))
        monkeypatch.setattr(CompiledNetwork, "__call__", lambda self, value: oracle(value) * wrong)
        return network

    wild = oracle_and_device(lambda value: 1 + 1e4 * (value - x))
    check_against_oracle(wild, [x])
    with pytest.raises(LoweringError, match="oracle"):
        check_against_oracle(oracle_and_device(lambda value: 1 + value), [x])


def test_agreement_is_the_ratio_of_powers() -> None:
    exact = torch.tensor([3.0, 4.0])
    assert agreement_decibels(exact, exact) == math.inf
    assert agreement_decibels(torch.tensor([3.0, 4.5]), exact) == pytest.approx(20.0)


def test_what_rounding_does_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped code grows to the noise of rounding; what is further off is refused."""
    network = assign_session(session(), "bf16")
    x = CASES["mobile"].inputs(1)
    exact = session().network.module(*x)[0]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(exact.shape, generator=generator)
    noise *= exact.norm() / noise.norm() / 10  # 20 dB

    def oracle_and_device(device: float) -> CompiledNetwork:
        monkeypatch.setattr(CompiledNetwork, "reference", lambda self, *_: exact + noise)
        off = noise.flip(-1) * device
        monkeypatch.setattr(CompiledNetwork, "__call__", lambda self, *_: exact + noise + off)
        return network

    check_against_oracle(oracle_and_device(1.0), x)
    with pytest.raises(LoweringError, match="oracle"):
        check_against_oracle(oracle_and_device(2.0), x)
