"""Scales of channels as a recipe wants them: between sites, and between norms and linear layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mpq_compile.errors import PlanError, nearest
from mpq_compile.passes import ops
from mpq_compile.passes.absorb_bias import absorb_biases
from mpq_compile.passes.base import is_call
from mpq_compile.passes.equalize import cross_layer_factors, equalize, is_site
from mpq_compile.passes.migrate import METHODS, Inputs, migrate
from mpq_compile.passes.network import Network
from mpq_compile.passes.seams import Seam, find_seams

EQUALIZATIONS = ("auto", "cross_layer", "none")
MIGRATIONS = (*METHODS, "none")


def check_balance(equalization: str, migration: str) -> None:
    """Raise ``PlanError`` for an unknown name."""
    _check("equalization", equalization, EQUALIZATIONS)
    _check("migration", migration, MIGRATIONS)


def _check(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise PlanError(
            f"unknown {kind} {name!r}",
            expected=f"one of {', '.join(known)}",
            found=repr(name),
            remedy=nearest(name, known),
        )


def balanced(
    network: Network,
    inputs: Callable[[], Inputs],
    equalization: str,
    migration: str,
    observer: str = "mse",
) -> Network:
    """Return a network with the same function, and scales of channels that quantize better.

    Args:
        network: The prepared network; it stays as it is.
        inputs: Returns calibration data; called where scales are judged by it.
        equalization: ``auto`` moves scales between sites where that lowers the error on the data
            (``passes.migrate``); ``cross_layer`` evens out the ranges of weights, without data, and
            absorbs biases; ``none``.
        migration: ``smoothquant`` or ``awq`` move scales out of the inputs of linear layers, into
            the layer norm, RMS norm, affine or site that makes them; ``none``.
        observer: How ranges of activations are chosen.

    Raises:
        PlanError: A name is unknown.
        CalibrationError: The input of a site is not finite.
    """
    check_balance(equalization, migration)
    if equalization == "cross_layer":
        network = absorb_biases(equalize(network))
    if equalization == "auto":
        seams = [seam for seam in find_seams(network) if is_site(network, seam.producer)]
        ranges = cross_layer_factors(network, seams)
        network = migrate(network, seams, inputs(), METHODS["smoothquant"], observer, [ranges])
    if migration != "none":
        seams = [seam for seam in find_seams(network) if _feeds_linears(network, seam)]
        network = migrate(network, seams, inputs(), METHODS[migration], observer)
    return network


def _feeds_linears(network: Network, seam: Seam) -> bool:
    return all(is_call(network.node(reader.node), ops.site_linear) for reader in seam.readers)
