"""Conversions that a kernel applies to what it stores, in place of kernels of their own."""

from __future__ import annotations

import numpy as np
from torch import fx

from mpq_compile.kernels import packing
from mpq_compile.passes.base import is_call
from mpq_compile.quant import ops as qops

INFINITE = (float("-inf"), float("inf"))
# The record of what is stored as it is.
IDENTITY = packing.pack_convert(0, 1.0, INFINITE, 0)


def converts(node: fx.Node) -> bool:
    """Tell whether a node is a conversion."""
    return is_call(node, qops.CONVERT)


def conversion_record(node: fx.Node) -> np.ndarray:
    """Return the record of a conversion."""
    zero_point_in, scale, bounds, zero_point = node.args[1:5]
    return packing.pack_convert(zero_point_in, scale, bounds, zero_point)
