"""How many samples a site needs before anything is fitted to it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpq_compile.calibrate import calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.passes.network import Network, prepare
from mpq_compile.reconstruct.correction import fit_channels
from mpq_compile.reconstruct.enough import samples_needed, shortage

METHODS = {"correction": "affine", "rounding": "gptq"}


def network(batch: int = 1) -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return prepare(capture(model, torch.randn(batch, 3, 6, 6)))


def assigned(name: str, found: Network) -> dict[str, str]:
    return {site.id: name for site in found.sites}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_convolution_sees_positions_and_a_linear_rows(batch: int) -> None:
    found = network(batch)
    # 4 × 4 positions a sample, and one row.
    assert [samples_needed(found, site) for site in found.sites] == [4, 64]


@pytest.mark.parametrize("samples", [3, 4, 63, 64])
def test_what_is_said_is_what_is_left(samples: int) -> None:
    found = network()
    batches = read_batches([torch.randn(samples, 3, 6, 6)], found)
    calibration = calibrate(found, batches)
    fit_channels(found, calibration, batches, assigned("w4a8", found))
    left = [site for (site, _), fit in calibration.fits.items() if bool((fit.gain == 1).all())]
    notes = shortage(found, samples, assigned("w4a8", found), METHODS)
    assert left == [site.id for site in found.sites if samples_needed(found, site) > samples]
    assert bool(notes) == bool(left)
    if left:
        assert f"at {len(left)} of 2 sites, such as {left[0]}" in notes[0]
        assert f"{samples} given, 64 needed" in notes[0]


def test_nothing_is_said_where_nothing_is_fitted() -> None:
    found = network()
    assert not shortage(found, 1, assigned("w8a8", found), METHODS)
    assert not shortage(
        found, 1, assigned("w4a8", found), {"correction": "none", "rounding": "nearest"}
    )
    (note,) = shortage(found, 1, assigned("w4a8", found), {**METHODS, "rounding": "nearest"})
    assert note.startswith("too few samples for affine at")
