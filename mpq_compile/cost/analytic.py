"""Cost of a site by equation, for targets that are described and not measured."""

from __future__ import annotations

import math

from mpq_compile.cost.profile import (
    Analytic,
    Array,
    Energy,
    Profile,
    in_channels,
    operator_name,
)
from mpq_compile.cost.profile_rules import rate_name
from mpq_compile.errors import ProfileError
from mpq_compile.types import Candidate, Site, format_bits, storage

_SCALE_BYTES = 4  # float32


def analytic_latency_us(profile: Profile, site: Site, candidate: Candidate) -> float:
    """Return the latency of a site in µs by a roofline [derived].

    t = max(macs / (1e3 · rate(w, a) · efficiency · u), bytes / (1e3 · bandwidth)) + launch, with
    the rate in 10⁹ MAC/s, the bandwidth in 10⁹ byte/s and :func:`traffic_bytes`: compute and
    transfers overlap, so that the longer decides. The rate is a table's entry, or
    peak / (ceil(w / weight_step) · ceil(a / activation_step)), which for steps of one bit is the
    rate of a bit-serial multiplier (Umuroglu et al., "BISMO", FPL 2018). u is the
    :func:`array_utilisation` of a systolic array, and 1 without one.

    Raises:
        ProfileError: The profile has no analytic block, or does not support the candidate here.
    """
    analytic = _checked(profile, site, candidate)
    share = analytic.efficiency.get(operator_name(site.op, site.depthwise), 1.0)
    if analytic.array is not None:
        share *= array_utilisation(analytic.array, site)
    compute_us = site.macs / (rate_gmacs(analytic, candidate) * share * 1e3)
    traffic = traffic_bytes(site, candidate, analytic.onchip_bytes)
    memory_us = traffic / (analytic.bandwidth_gbs * 1e3)
    return max(compute_us, memory_us) + analytic.launch_us


def array_utilisation(array: Array, site: Site) -> float:
    """Return the share of a systolic array that a site fills, above 0 and at most 1 [derived].

    u = K / (R · ceil(K / R)) · N / (C · ceil(N / C)) for a reduction K that lies along R rows and
    N output channels along C columns, in whole tiles: a tile that is filled by half takes the
    time of a full one. K = C_in / groups · kh · kw and N = C_out / groups, because each group has
    tiles of its own; a depthwise layer, with K = kh · kw and N = 1, fills one column. A transposed
    convolution multiplies each input pixel with all weights: K = C_in / groups,
    N = C_out / groups · kh · kw. Weights are loaded into the array behind the tile before (Jouppi
    et al., ISCA 2017), and no faster than the main memory gives them, which the roofline counts.
    """
    depth, width = _reduction_and_outputs(site)
    rows = depth / (array.rows * math.ceil(depth / array.rows))
    columns = width / (array.columns * math.ceil(width / array.columns))
    return rows * columns


def _reduction_and_outputs(site: Site) -> tuple[int, int]:
    """Return K and N of the matrix product of one group."""
    depth, width = in_channels(site) // site.groups, site.out_channels // site.groups
    kernel = math.prod(site.weight_shape[2:])
    if site.op == "conv_transpose2d":
        return depth, width * kernel
    return depth * kernel, width


def energy_mj(profile: Profile, site: Site, candidate: Candidate, latency_us: float) -> float:
    """Return the energy in mJ of a site that takes ``latency_us`` [derived].

    E = macs · w · a · e_mac_bit + bytes · e_byte + P_static · t, with energies in pJ, the power
    in mW, t in µs and bytes of :func:`traffic_bytes`.

    Raises:
        ProfileError: The profile has no energy figures.
    """
    energy = _energy(profile)
    onchip_bytes = profile.analytic.onchip_bytes if profile.analytic else None
    bit_products = site.macs * candidate.weight_bits * candidate.activation_bits
    traffic = traffic_bytes(site, candidate, onchip_bytes)
    dynamic_pj = bit_products * energy.pj_per_mac_bit + traffic * energy.pj_per_byte
    static_nj = energy.static_mw * latency_us
    return dynamic_pj * 1e-9 + static_nj * 1e-6


def traffic_bytes(site: Site, candidate: Candidate, onchip_bytes: int | None = None) -> int:
    """Return the bytes that a site moves to and from the main memory [derived].

    bytes = O + min(W + I · ceil(2W / C), I + W · ceil(2I / C)): half of the on-chip memory C
    holds a slice of the weights W (or of the input I) while the whole of the other passes by; the
    output O is written once. Where C is None, or one operand fits in half of it, all move once.
    Activations take the bytes in which the candidate's input format is stored, outputs too.
    """
    weights = weight_bytes(site, candidate)
    item = format_bits(storage(candidate.input_format)) // 8
    inputs, outputs = (item * math.prod(shape) for shape in (site.input_shape, site.output_shape))
    if onchip_bytes is None:
        return weights + inputs + outputs
    slices_of_weights = math.ceil(2 * weights / onchip_bytes)
    slices_of_inputs = math.ceil(2 * inputs / onchip_bytes)
    return outputs + min(weights + inputs * slices_of_weights, inputs + weights * slices_of_inputs)


def weight_bytes(site: Site, candidate: Candidate) -> int:
    """Return the bytes of the weights packed at their true bits, float32 scales included."""
    return code_bytes(site, candidate) + scale_bytes(site, candidate)


def code_bytes(site: Site, candidate: Candidate) -> int:
    """Return the bytes of the weights alone, packed at their true bits."""
    return math.ceil(site.weight_count * candidate.weight_bits / 8)


def scale_bytes(site: Site, candidate: Candidate) -> int:
    """Return the bytes of the float32 scales of integer weights."""
    if candidate.is_float:
        return 0
    depth = site.weight_count // site.out_channels
    scales_per_row = math.ceil(depth / candidate.group_size) if candidate.group_size else 1
    return _SCALE_BYTES * site.out_channels * scales_per_row


def rate_gmacs(analytic: Analytic, candidate: Candidate) -> float:
    """Return the rate of a candidate's products in 10⁹ MAC/s, before any share of it is lost."""
    if analytic.table is not None:
        return analytic.table[rate_name(candidate)]
    formula = analytic.formula
    assert formula is not None, "the schema asks for a formula or a table"
    weight_steps = math.ceil(candidate.weight_bits / formula.weight_step)
    activation_steps = math.ceil(candidate.activation_bits / formula.activation_step)
    return formula.peak_gmacs / (weight_steps * activation_steps)


def _checked(profile: Profile, site: Site, candidate: Candidate) -> Analytic:
    """Return the analytic block; refuse a profile without one and an unsupported candidate."""
    if profile.analytic is None:
        raise ProfileError(
            f"profile {profile.name} has no analytic cost",
            where=profile.source,
            expected="an analytic block with rate, bandwidth_gbs and launch_us",
            found="null",
            remedy="measure on the device, or add the block",
        )
    profile.candidates_for(site, [candidate.name])
    return profile.analytic


def _energy(profile: Profile) -> Energy:
    if profile.energy is None:
        raise ProfileError(
            f"profile {profile.name} has no energy figures",
            where=profile.source,
            expected="an energy block with pj_per_mac_bit and pj_per_byte",
            found="null",
            remedy="add the block, or drop the energy_mj budget",
        )
    return profile.energy
