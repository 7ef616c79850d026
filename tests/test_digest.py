"""Content hashes: the same for the same content, another for any other, none for what is opaque."""

from __future__ import annotations

import functools
import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mpq_compile.digest import content_digest
from mpq_compile.memo import Memo, evaluations_dir

FACTOR = 2.0


def scaled(x: float) -> float:
    return FACTOR * x


def with_closure(data: torch.Tensor, plus: float = 0.0):
    def evaluate(network) -> float:
        return float(network(data).sum()) + plus

    return evaluate


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        ("1", 1),
        ([1, 2], [2, 1]),
        ([1, [2]], [[1], 2]),
        ({"a": 1}, {"a": 2}),
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.float64)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
        (np.zeros(3), np.zeros(3, np.int64)),
        (with_closure(torch.zeros(3)), with_closure(torch.ones(3))),
        (with_closure(torch.zeros(3)), with_closure(torch.zeros(3), 1.0)),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x.mean(), lambda x: x.sum()),
        (functools.partial(scaled, x=1.0), functools.partial(scaled, x=2.0)),
    ],
)
def test_other_content_has_another_digest(one: object, other: object) -> None:
    assert content_digest(one) == content_digest(one) is not None
    assert content_digest(one) != content_digest(other)


def test_the_same_content_has_the_same_digest() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    assert content_digest(x.T) == content_digest(x.T.clone().contiguous())
    assert content_digest(with_closure(x)) == content_digest(with_closure(x.clone()))
    torch.manual_seed(0)
    first = nn.Linear(3, 2)
    second = nn.Linear(3, 2)
    assert content_digest(first) != content_digest(second)
    second.load_state_dict(first.state_dict())
    assert content_digest(first) == content_digest(second)


def test_globals_of_a_function_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_digest(scaled)
    monkeypatch.setitem(scaled.__globals__, "FACTOR", 3.0)
    assert content_digest(scaled) != before


def test_a_cycle_ends() -> None:
    loop: list = [1]
    loop.append(loop)
    assert content_digest(loop) is not None


@pytest.mark.parametrize("value", [io.StringIO(), threading.Lock(), iter([1]), object()])
def test_what_cannot_be_looked_into_has_none(value: object) -> None:
    def evaluate(network) -> float:
        return float(value is network)

    assert content_digest(value) is None
    assert content_digest(evaluate) is None


def test_results_are_kept_by_key(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "new" / "folder")
    assert memo.get("a") is None
    memo.put("a", {"drop": 1.5, "score": None})
    assert Memo(tmp_path / "new" / "folder").get("a") == {"drop": 1.5, "score": None}
    (tmp_path / "new" / "folder" / "a.json").write_text("{damaged", encoding="utf-8")
    assert memo.get("a") is None
    assert not list((tmp_path / "new" / "folder").glob("*.part"))


def test_nothing_is_kept_where_it_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for memo in (Memo(None), Memo(tmp_path / "file")):
        memo.put("a", {"drop": 1.0})
        assert memo.get("a") is None
    monkeypatch.setenv("MPQ_EVALUATIONS", "0")
    assert evaluations_dir() is None
    monkeypatch.setenv("MPQ_EVALUATIONS", str(tmp_path))
    assert evaluations_dir() == tmp_path
