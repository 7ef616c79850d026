"""Parameters of a lowered network: how each is stored, and how the kernels want it.

An artifact stores integer weights at their true width, one scale a channel (or group) and the
bias. The layout that a kernel reads is made when the artifact is loaded. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mpq_compile.errors import ArtifactError
from mpq_compile.kernels import packing
from mpq_compile.kernels.embedding_workload import EmbeddingWorkload, pack_table
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload, Workload
from mpq_compile.quant.multipliers import channel_multipliers
from mpq_compile.quant.packing import pack_bits, unpack_bits

Arrays = Mapping[str, np.ndarray]
WORKLOADS: Mapping[str, type] = {
    "conv": ConvWorkload,
    "linear": LinearWorkload,
    "embedding": EmbeddingWorkload,
}


@dataclass(frozen=True, kw_only=True)
class StoredSite:
    """Weights of one matrix multiply as they stand in the artifact.

    Args:
        name: Prefix of its arrays: ``name.weight``, ``name.scale``, ``name.bias``.
        kind: "int" (packed codes and scales), "fp32" or "bf16".
        bits: Width of the codes; 32 or 16 for float weights.
        shape: Shape of the weight, [N, ...].
        has_bias: False where the bias is zero and is not stored.
        shared: Site that stores the same weight, before this one; "" where it has its own.
        scaled: Site that stores the same scales, likewise.
    """

    name: str
    kind: str
    bits: int
    shape: tuple[int, ...]
    has_bias: bool
    shared: str = ""
    scaled: str = ""

    @property
    def owner(self) -> str:
        """The site whose weight it reads."""
        return self.shared or self.name

    def weight(self, arrays: Arrays) -> np.ndarray:
        """Return int8 codes, or the float weight widened to float32."""
        stored = arrays[f"{self.owner}.weight"]
        if self.kind == "int":
            return unpack_bits(stored, self.bits, self.shape)
        if self.kind == "bf16":
            return (stored.astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        return stored.reshape(self.shape)

    def scale(self, arrays: Arrays) -> np.ndarray:
        """Return float32 [N] or [N, groups]; ones for float weights."""
        if self.kind != "int":
            return np.ones(self.shape[0], np.float32)
        stored = arrays[f"{self.scaled or self.name}.scale"]
        return stored if len(stored) == self.shape[0] else stored.reshape(self.shape[0], -1)

    def bias(self, arrays: Arrays) -> np.ndarray:
        """Return float32 [N]."""
        if not self.has_bias:
            return np.zeros(self.shape[0], np.float32)
        return arrays[f"{self.name}.bias"]


def stored_arrays(
    site: StoredSite, weight: np.ndarray, scale: np.ndarray, bias: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the arrays of a site as the artifact keeps them.

    ``weight`` holds int8 codes, float32, or bf16 bits (uint16).
    """
    arrays = {f"{site.name}.weight": weight.reshape(-1)}
    if site.kind == "int":
        arrays[f"{site.name}.weight"] = pack_bits(weight, site.bits)
        arrays[f"{site.name}.scale"] = scale.astype(np.float32).reshape(-1)
    if site.has_bias:
        arrays[f"{site.name}.bias"] = bias.astype(np.float32)
    return arrays


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to make one kernel parameter.

    Args:
        kind: "weight", "epilogue" or "table" (of a stored site), "words" (given here) or "array"
            (stored).
        site: Name of the stored site.
        workload: Type and fields of the kernel's workload.
        values: Scales, zero points and bounds of an epilogue; or the words.
        dtype: Type of the parameter, as NumPy names it.
        size: Elements.
    """

    kind: str
    dtype: str
    size: int
    site: str = ""
    workload: Mapping[str, Any] | None = None
    values: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data without what is not used."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


def describe_workload(workload: Workload | EmbeddingWorkload) -> dict[str, Any]:
    """Return type and fields of a workload, JSON-ready."""
    name = next(key for key, kind in WORKLOADS.items() if isinstance(workload, kind))
    return {"type": name, **asdict(workload)}


def read_workload(data: Mapping[str, Any]) -> Any:
    """Rebuild a workload from :func:`describe_workload`."""
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "type"}
    return WORKLOADS[data["type"]](**fields)


def build_parameter(
    recipe: Recipe, sites: Mapping[str, StoredSite], arrays: Arrays, tier: Tier
) -> np.ndarray:
    """Return the parameter that ``recipe`` describes, flat.

    Raises:
        ArtifactError: The result has another size than the library expects.
    """
    parameter = np.ascontiguousarray(_BUILDERS[recipe.kind](recipe, sites, arrays, tier)).reshape(
        -1
    )
    if parameter.size != recipe.size or parameter.dtype != np.dtype(recipe.dtype):
        raise ArtifactError(
            "a parameter does not fit the library",
            where=recipe.site or recipe.kind,
            expected=f"{recipe.size} × {recipe.dtype}",
            found=f"{parameter.size} × {parameter.dtype}",
            remedy="compile the network again",
        )
    return parameter


def _weight(recipe: Recipe, sites: Mapping[str, StoredSite], arrays: Arrays, tier: Tier):
    assert recipe.workload is not None
    return packing.pack_weight(
        read_workload(recipe.workload), tier, sites[recipe.site].weight(arrays)
    )


def _epilogue(recipe: Recipe, sites: Mapping[str, StoredSite], arrays: Arrays, tier: Tier):
    assert recipe.workload is not None and recipe.values is not None
    site, values = sites[recipe.site], recipe.values
    return epilogue_record(
        read_workload(recipe.workload),
        tier,
        site.weight(arrays),
        site.scale(arrays),
        site.bias(arrays),
        values,
    )


def epilogue_record(
    workload: Workload,
    tier: Tier,
    weight: np.ndarray,
    weight_scale: np.ndarray,
    bias: np.ndarray,
    values: Mapping[str, Any],
) -> np.ndarray:
    """Return the int32 record of a matrix multiply.

    ``values`` holds input_scale, output_scale, zero_points (input, residual, output),
    residual_scale and bounds (lo, hi), as the materialized graph has them.
    """
    scale, shift = channel_multipliers(
        weight_scale, bias, values["input_scale"], values["output_scale"]
    )
    zero_points: Sequence[int] = values["zero_points"]
    bounds = [float(bound) for bound in values["bounds"]]
    return packing.pack_epilogue(
        workload, tier, weight, zero_points, scale, shift, values["residual_scale"], bounds
    )


def _table(recipe: Recipe, sites: Mapping[str, StoredSite], arrays: Arrays, tier: Tier):
    assert recipe.workload is not None
    return pack_table(read_workload(recipe.workload), sites[recipe.site].weight(arrays))


def _words(recipe: Recipe, sites: Mapping[str, StoredSite], arrays: Arrays, tier: Tier):
    assert recipe.values is not None
    return np.array(recipe.values["words"], np.int32).view(recipe.dtype)


def _array(recipe: Recipe, sites: Mapping[str, StoredSite], arrays: Arrays, tier: Tier):
    assert recipe.values is not None
    return arrays[recipe.values["name"]]


_BUILDERS = {
    "weight": _weight,
    "epilogue": _epilogue,
    "table": _table,
    "words": _words,
    "array": _array,
}
