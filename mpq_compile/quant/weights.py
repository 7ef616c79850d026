"""Weight quantization: symmetric, per output channel or per group of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpq_compile.errors import PlanError
from mpq_compile.types import Candidate, QSpec

# Fractions of the largest magnitude that are tried as clipping points, widest first.
_CLIPS = torch.linspace(1.0, 0.4, 25)
_BLOCK = 2**16


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """Integer weights of one site.

    Args:
        codes: int8, the shape of the float weight; output channels in dimension 0.
        scale: float32 [N], or [N, groups] where ``spec.group_size`` is given.
        spec: Bits and granularity.
    """

    codes: Tensor
    scale: Tensor
    spec: QSpec

    def dequantize(self) -> Tensor:
        """Return float32 weights, ``codes · scale``."""
        rows = self.codes.shape[0]
        groups = 1 if self.scale.dim() == 1 else self.scale.shape[1]
        real = self.codes.reshape(rows, groups, -1).float() * self.scale.reshape(rows, groups, 1)
        return real.reshape(self.codes.shape)


@dataclass(frozen=True, kw_only=True)
class ChannelFit:
    """What brings a site with a rounded weight closest to float: its output · gain + shift.

    Args:
        gain: float32 [N], of the weight's scales.
        shift: float32 [N], of the bias; zero where the site has none.
    """

    gain: Tensor
    shift: Tensor


def weight_spec(candidate: Candidate) -> QSpec:
    """Return the weight QSpec of an integer-weight candidate."""
    return QSpec(
        bits=candidate.weight_bits,
        signed=True,
        symmetric=True,
        axis=0,
        group_size=candidate.group_size,
    )


def quantize_weight(weight: Tensor, spec: QSpec) -> QuantizedWeight:
    """Round weights to nearest with scales that minimise the squared error.

    The scale of each row (output channel, or group of it) is chosen among 25 clipping points by
    mean squared error; at 8 bits the widest is taken, where clipping never pays.

    Args:
        weight: float32 [N, ...].
        spec: Signed symmetric spec; ``group_size`` must divide the inputs of a row.
    """
    rows = _rows(weight, spec)
    largest = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * 256)
    scale = largest / spec.qmax
    if spec.bits < 8:
        # The search reads each row 25 times: blocks of rows stay in the cache.
        size = max(1, _BLOCK // rows.shape[1])
        blocks = zip(rows.split(size), largest.split(size), strict=True)
        scale = torch.cat([_best_scale(part, peak, spec) for part, peak in blocks])
    codes = torch.clamp(torch.round(rows / scale), spec.qmin, spec.qmax).to(torch.int8)
    shape = (weight.shape[0],) if spec.group_size is None else (weight.shape[0], -1)
    return QuantizedWeight(
        codes=codes.reshape(weight.shape), scale=scale.reshape(shape).contiguous(), spec=spec
    )


def _rows(weight: Tensor, spec: QSpec) -> Tensor:
    flat = weight.detach().float().reshape(weight.shape[0], -1)
    if spec.group_size is None:
        return flat
    if flat.shape[1] % spec.group_size:
        raise PlanError(
            "group size does not divide the layer's inputs",
            expected=f"a divisor of {flat.shape[1]}",
            found=str(spec.group_size),
            remedy="choose another group size for this site",
        )
    return flat.reshape(-1, spec.group_size)


def _best_scale(rows: Tensor, largest: Tensor, spec: QSpec) -> Tensor:
    # The full range is asymmetric by one code: dividing by qmax + ½ centres it.
    best_scale = largest / (spec.qmax + 0.5)
    best_error = torch.full_like(largest, float("inf"))
    for clip in _CLIPS:
        scale = largest * clip / (spec.qmax + 0.5)
        real = torch.clamp(torch.round(rows / scale), spec.qmin, spec.qmax) * scale
        error = (real - rows).square().sum(1, keepdim=True)
        better = error < best_error
        best_scale = torch.where(better, scale, best_scale)
        best_error = torch.where(better, error, best_error)
    return best_scale
