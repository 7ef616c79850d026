"""Fits on disk: what finds them again, what does not, what is not written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from site_nets import Residual, Setting, images, same

from mpq_compile.sensitivity import checkpoint

NAMES = ("w2a8", "w3a8", "w4a8")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, where every fit is worth keeping."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(checkpoint, "WORTH_S", 0.0)
    return tmp_path / "mpq_compile" / "fits"


def test_fits_are_made_once(cache: Path, solved: list[str]) -> None:
    setting = Setting()
    first = setting.everywhere("w2a8", "w3a8")
    assert solved == setting.sites and len(list(cache.glob("*/*.npz"))) == 2 * len(setting.sites)
    second = Setting().everywhere("w3a8", "w2a8")
    assert solved == setting.sites
    assert all(same(first, second, key) for key in first.weights)
    # Another width adds to what is there.
    assert len(setting.everywhere(*NAMES).weights) == 3 * len(setting.sites)
    assert solved == setting.sites * 2 and len(list(cache.iterdir())) == 1


def test_other_weights_or_data_are_fitted_anew(cache: Path, solved: list[str]) -> None:
    setting = Setting()
    first = setting.everywhere("w3a8")
    solved.clear()
    other = Setting(x=images(seed=2))
    other.everywhere("w3a8")
    assert solved == setting.sites
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        model.head.weight[0, 0] += 1.0
    changed = Setting(model)
    solved.clear()
    second = changed.everywhere("w3a8")
    assert solved == setting.sites and len(list(cache.iterdir())) == 3
    *before, head = first.weights
    assert all(same(first, second, key) for key in before) and not same(first, second, head)


def test_a_damaged_fit_is_made_again(cache: Path, solved: list[str]) -> None:
    setting = Setting()
    first = setting.everywhere("w3a8")
    next(cache.glob("*/2-w3.npz")).write_bytes(b"half a file")
    solved.clear()
    second = setting.everywhere("w3a8")
    assert solved == [setting.sites[2]]
    assert all(same(first, second, key) for key in first.weights)


def test_what_took_no_time_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solved: list[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(checkpoint, "WORTH_S", 1e9)
    Setting().everywhere("w3a8")
    assert solved and not list(tmp_path.rglob("*.npz"))
