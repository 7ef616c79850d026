"""What the tests of costs share: an own cache folder, sites and measurements."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpq_compile.types import Site


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test away from the user's cache and database."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MPQ_DB", raising=False)
    monkeypatch.delenv("MPQ_TIER", raising=False)
    return tmp_path / "cache" / "mpq_compile"


@pytest.fixture
def linear() -> Site:
    return Site(
        id="fc:linear#0",
        op="linear",
        weight_shape=(128, 256),
        input_shape=(4, 256),
        output_shape=(4, 128),
        macs=4 * 256 * 128,
        group="fc",
    )


@pytest.fixture
def conv() -> Site:
    return Site(
        id="conv:conv2d#0",
        op="conv2d",
        weight_shape=(64, 32, 3, 3),
        input_shape=(1, 32, 28, 28),
        output_shape=(1, 64, 28, 28),
        macs=64 * 32 * 9 * 28 * 28,
        group="conv",
    )


@pytest.fixture
def depthwise() -> Site:
    return Site(
        id="dw:conv2d#0",
        op="conv2d",
        weight_shape=(32, 1, 3, 3),
        input_shape=(1, 32, 28, 28),
        output_shape=(1, 32, 28, 28),
        macs=32 * 9 * 28 * 28,
        group="dw",
        groups=32,
    )


@pytest.fixture
def transposed() -> Site:
    return Site(
        id="up:conv_transpose2d#0",
        op="conv_transpose2d",
        weight_shape=(32, 16, 2, 2),
        input_shape=(1, 32, 14, 14),
        output_shape=(1, 16, 28, 28),
        macs=32 * 16 * 4 * 14 * 14,
        group="up",
    )
