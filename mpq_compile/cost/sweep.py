"""Representative kernels for a device that nothing is known of: what ``mpq profile --sweep`` times.

The shapes are those of networks for images (ResNet, MobileNet, EfficientNet at 224 and 32 pixels)
and of transformers, with one row and with many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mpq_compile.cost.profile import Profile, operator_name
from mpq_compile.errors import ProfileError
from mpq_compile.kernels.tier import tier_named
from mpq_compile.lower.workloads import input_workload, site_workload
from mpq_compile.runtime.kernel_timing import Task
from mpq_compile.types import Candidate, Site

# Pixels a side, input channels, output channels, kernel, stride; padded to the same size.
CONVOLUTIONS = (
    (224, 3, 32, 3, 2), (224, 3, 64, 7, 2), (32, 3, 16, 3, 1),
    (112, 32, 32, 3, 1), (56, 32, 32, 3, 1), (56, 64, 64, 3, 1), (28, 64, 64, 3, 1),
    (28, 128, 128, 3, 1), (14, 128, 128, 3, 1), (14, 256, 256, 3, 1), (7, 256, 256, 3, 1),
    (7, 512, 512, 3, 1), (32, 16, 16, 3, 1), (16, 32, 32, 3, 1), (8, 64, 64, 3, 1),
    (56, 64, 128, 3, 2), (28, 128, 256, 3, 2), (14, 256, 512, 3, 2), (32, 16, 32, 3, 2),
    (28, 48, 96, 5, 1), (14, 96, 128, 5, 2),
    (112, 32, 16, 1, 1), (112, 16, 96, 1, 1), (56, 24, 144, 1, 1), (56, 64, 64, 1, 1),
    (56, 64, 256, 1, 1), (56, 256, 64, 1, 1), (28, 192, 32, 1, 1), (28, 128, 512, 1, 1),
    (14, 64, 384, 1, 1), (14, 384, 64, 1, 1), (14, 1024, 256, 1, 1), (7, 320, 1280, 1, 1),
    (7, 960, 160, 1, 1), (56, 64, 128, 1, 2), (28, 128, 256, 1, 2),
)  # fmt: skip
# Pixels a side, channels, kernel, stride.
DEPTHWISE = (
    (112, 32, 3, 1), (112, 96, 3, 2), (56, 144, 3, 1), (56, 144, 3, 2), (28, 192, 3, 1),
    (14, 384, 3, 1), (14, 576, 3, 2), (7, 960, 3, 1), (28, 72, 5, 2), (14, 240, 5, 1),
    (25, 64, 3, 1),
)  # fmt: skip
# Rows, input features, output features.
LINEARS = (
    (1, 64, 10), (1, 256, 256), (1, 512, 1000), (1, 1024, 1024), (1, 1280, 1000),
    (1, 1024, 4096), (1, 4096, 4096), (4, 768, 768), (16, 256, 256), (49, 512, 512),
    (128, 384, 384), (128, 384, 1536), (128, 1536, 384), (197, 768, 768), (512, 256, 256),
)  # fmt: skip
# On most tiers fewer bits run in the kernels of 8, which are swept once.
CONVOLUTION_CANDIDATES = ("fp32", "bf16", "w8a8", "w4a8")
LINEAR_CANDIDATES = ("fp32", "bf16", "w8a8", "w4a8", "w2a8", "w4a16", "w8a8d", "w8a8g64")


def sweep_tasks(profile: Profile, candidates: Sequence[str] | None = None) -> list[Task]:
    """Return the kernels of the sweep, each once, in the order of the tables.

    Args:
        profile: What the target supports.
        candidates: Names; None for those that have kernels of their own.

    Raises:
        PlanError: A name is not a candidate's.
        ProfileError: The target supports none of them.
    """
    asked = None if candidates is None else [Candidate.parse(name) for name in candidates]
    tier = tier_named(profile.tiers[0] if profile.tiers else "generic")
    unique: dict[str, Task] = {}
    for site, geometry, own in _sites():
        for candidate in map(Candidate.parse, own) if asked is None else asked:
            if not profile.supports(site.op, site.depthwise, candidate, site):
                continue
            before = input_workload(site, candidate)
            if before is not None:
                unique.setdefault(before.key, Task(operator="quantize_rows", workload=before))
            kernel = site_workload(site, candidate, tier, geometry, residual=False, final=False)
            operator = operator_name(site.op, site.depthwise)
            unique.setdefault(kernel.key, Task(operator=operator, workload=kernel))
    if not unique:
        raise ProfileError(
            "the target supports none of these candidates",
            where=profile.source,
            expected=", ".join(profile.defaults),
            found=", ".join(candidates or ()),
            remedy="name others, or leave them out",
        )
    return list(unique.values())


Geometry = tuple[object, ...]


def _sites() -> Iterator[tuple[Site, Geometry, Sequence[str]]]:
    """Yield each shape as a site, with the operator's geometry and its own candidates."""
    for size, inputs, outputs, kernel, stride in CONVOLUTIONS:
        yield *_convolution(size, inputs, outputs, kernel, stride, 1), CONVOLUTION_CANDIDATES
    for size, channels, kernel, stride in DEPTHWISE:
        shape = (size, channels, channels, kernel, stride, channels)
        yield *_convolution(*shape), CONVOLUTION_CANDIDATES
    for rows, inputs, outputs in LINEARS:
        yield _linear(rows, inputs, outputs), (), LINEAR_CANDIDATES


def _convolution(
    size: int, inputs: int, outputs: int, kernel: int, stride: int, groups: int
) -> tuple[Site, Geometry]:
    pad = kernel // 2
    out_size = (size + 2 * pad - kernel) // stride + 1
    weight_shape = (outputs, inputs // groups, kernel, kernel)
    site = Site(
        id=f"sweep.{size}x{inputs}x{outputs}:conv2d#0",
        op="conv2d",
        weight_shape=weight_shape,
        input_shape=(1, inputs, size, size),
        output_shape=(1, outputs, out_size, out_size),
        macs=outputs * out_size**2 * weight_shape[1] * kernel**2,
        group="sweep",
        groups=groups,
    )
    return site, ((stride, stride), (pad,) * 4, (1, 1), groups, (1, 1))


def _linear(rows: int, inputs: int, outputs: int) -> Site:
    return Site(
        id=f"sweep.{rows}x{inputs}x{outputs}:linear#0",
        op="linear",
        weight_shape=(outputs, inputs),
        input_shape=(rows, inputs),
        output_shape=(rows, outputs),
        macs=rows * inputs * outputs,
        group="sweep",
    )
