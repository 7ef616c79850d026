"""Frozen records that cross the stages. Units stand in the names; tables are keyed by site id."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Real
from typing import Any, Literal

from mpq_compile.errors import PlanError
from mpq_compile.registry import REPORTS

SiteOp = Literal["conv2d", "conv_transpose2d", "linear", "embedding"]
Storage = Literal["u8", "bf16", "fp32"]

# Narrowest first: a tensor that feeds sites of several formats is stored in the widest of them.
# u2 … u8 are unsigned affine codes of that many bits, all stored in bytes.
FORMATS: tuple[str, ...] = (*(f"u{bits}" for bits in range(2, 9)), "bf16", "fp32")
FORMAT_WIDTH: Mapping[str, int] = {name: rank for rank, name in enumerate(FORMATS)}


def storage(fmt: str) -> Storage:
    """Return how a format is stored: ``u8`` for every affine format, else itself."""
    if fmt.startswith("u"):
        return "u8"
    return "bf16" if fmt == "bf16" else "fp32"


def format_bits(fmt: str) -> int:
    """Return the bits of a format's codes: 2 to 8, 16 or 32."""
    return {"bf16": 16, "fp32": 32}.get(fmt) or int(fmt[1:])


_CANDIDATE = re.compile(r"w([2-8])a([2-8]|16)(?:g(\d+))?(d)?")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to compute a site, parsed from its name.

    ``fp32`` and ``bf16`` are float; ``w<b>a<b>[g<group>][d]`` are integer weights of b bits with
    activations of b bits (8 or fewer: unsigned affine; 16: bf16, weight-only), scales per group
    of ``group_size`` input features, and ``d`` for activations quantized dynamically.
    """

    name: str
    weight_bits: int
    activation_bits: int
    group_size: int | None = None
    dynamic: bool = False

    @classmethod
    def parse(cls, name: str) -> Candidate:
        """Parse a candidate name; raise ``PlanError`` when it is not one."""
        if name == "fp32":
            return cls(name=name, weight_bits=32, activation_bits=32)
        if name == "bf16":
            return cls(name=name, weight_bits=16, activation_bits=16)
        match = _CANDIDATE.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            raise PlanError(
                f"{name!r} is not a candidate",
                expected="fp32, bf16 or w<2..8>a<2..8|16>[g<group>][d], such as w4a8",
                found=repr(name),
                remedy="correct the name",
            )
        weight_bits, activation_bits, group, dynamic = match.groups()
        return cls(
            name=name,
            weight_bits=int(weight_bits),
            activation_bits=int(activation_bits),
            group_size=int(group) if group else None,
            dynamic=bool(dynamic),
        )

    @property
    def is_float(self) -> bool:
        """True for fp32 and bf16, whose weights are not integers."""
        return self.weight_bits >= 16

    @property
    def integer_compute(self) -> bool:
        """True where products and sums are exact integers."""
        return self.activation_bits <= 8

    @property
    def input_format(self) -> str:
        """Format in which the site reads its input tensor."""
        if self.dynamic or self.activation_bits == 32:
            return "fp32"
        return f"u{self.activation_bits}" if self.activation_bits <= 8 else "bf16"


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place in the network whose bits are chosen.

    ``weight_shape`` is the PyTorch shape; ``input_shape`` and ``output_shape`` are those of the
    example inputs; ``macs`` counts multiply-accumulates for the example's batch; ``group`` names
    the tie: sites of one group share one candidate. ``shared`` is the site before this one that
    stores the same weight; empty where it stores its own.
    """

    id: str
    op: SiteOp
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int
    group: str
    groups: int = 1
    source: str = ""
    shared: str = ""

    @property
    def path(self) -> str:
        """Module path without operator and occurrence."""
        return self.id.partition(":")[0]

    @property
    def weight_count(self) -> int:
        """Number of weight elements."""
        return _product(self.weight_shape)

    @property
    def stored_weights(self) -> int:
        """Number of weight elements that are stored for it: none of a weight that it shares."""
        return 0 if self.shared else self.weight_count

    @property
    def out_channels(self) -> int:
        """Number of output channels (features); of an embedding, rows: what has a scale."""
        if self.op == "conv_transpose2d":
            return self.weight_shape[1] * self.groups
        return self.weight_shape[0]

    @property
    def multiplies(self) -> bool:
        """True where activations meet weights in products; an embedding only looks weights up."""
        return self.op != "embedding"

    @property
    def depthwise(self) -> bool:
        """True for a convolution with one input channel a group."""
        return self.op == "conv2d" and self.groups > 1 and self.weight_shape[1] == 1


def _product(values: Sequence[int]) -> int:
    result = 1
    for value in values:
        result *= value
    return result


@dataclass(frozen=True, kw_only=True)
class QSpec:
    """How a tensor is quantized: bits, sign, symmetry, channel axis, group size."""

    bits: int
    signed: bool
    symmetric: bool
    axis: int | None = None
    group_size: int | None = None

    @property
    def qmin(self) -> int:
        """Smallest code. Eight-bit weights leave out −128, so that x·w never saturates."""
        if not self.signed:
            return 0
        return -127 if self.bits == 8 else -(2 ** (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Largest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1


@dataclass(frozen=True, kw_only=True)
class QParams:
    """Scale and zero point of one tensor; ``scale`` holds one float32 value per tensor."""

    spec: QSpec
    scale: float
    zero_point: int = 0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the deployed network may cost; any subset of fields.

    ``latency_ms`` bounds the median, ``latency_p95_ms`` the 95th percentile, both of moments in
    which the machine is as usual, ``avg_bits`` the mean weight bits over quantizable weights. Two
    bounds turn the question round: ``max_drop`` on the measured loss of accuracy (in the unit of
    ``evaluate``), ``max_loss`` on the sum of the metric's losses (in the metric's unit).
    """

    latency_ms: float | None = None
    latency_p95_ms: float | None = None
    size_mb: float | None = None
    bops: float | None = None
    peak_activation_mb: float | None = None
    energy_mj: float | None = None
    avg_bits: float | None = None
    max_drop: float | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            number = isinstance(value, Real) and not isinstance(value, bool)
            if number and 0 <= value < float("inf"):
                object.__setattr__(self, name, value if type(value) is int else float(value))
            else:
                raise PlanError(
                    f"budget {name} must be a finite number, not negative",
                    expected="a number ≥ 0",
                    found=repr(value),
                    remedy=f"give {name} a number, or leave it out",
                )

    @classmethod
    def of(cls, given: Budget | Mapping[str, float] | None) -> Budget:
        """Return a budget, given as itself, a mapping or None; raise ``PlanError`` for others."""
        if isinstance(given, Budget):
            return given
        try:
            return cls(**({} if given is None else given))
        except TypeError as error:
            raise PlanError(
                "unknown budget",
                expected=", ".join(cls.__dataclass_fields__),
                found=", ".join(map(str, given)) if isinstance(given, Mapping) else repr(given),
                remedy="use the names of mpq.Budget",
            ) from error

    @property
    def peak_activation_bytes(self) -> float | None:
        """``peak_activation_mb`` in bytes."""
        return None if self.peak_activation_mb is None else self.peak_activation_mb * 1e6

    def with_latency_scaled(self, factor: float) -> Budget:
        """Return the budget with its bounds on latency multiplied."""
        bounds = {name: getattr(self, name) for name in ("latency_ms", "latency_p95_ms")}
        return replace(self, **{n: v * factor for n, v in bounds.items() if v is not None})

    def given(self) -> dict[str, float]:
        """Return the fields that are bounded."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Predicted cost of an assignment; ``latency_ms`` is None where no latency is known.

    ``latency_ms_lower95`` and ``latency_ms_upper95`` are its 95 % interval, where it comes from
    measurements.
    """

    latency_ms: float | None
    size_bytes: int
    bops: int
    avg_bits: float
    peak_activation_bytes: int
    energy_mj: float | None = None
    latency_ms_lower95: float | None = None
    latency_ms_upper95: float | None = None


@dataclass(frozen=True, kw_only=True)
class SensitivityTable:
    """``loss[site][candidate]``: loss increase against float, by the metric's own unit.

    ``spread`` is the standard error of each loss over calibration samples; empty where a metric
    looks at none. ``pairs[(a, b)][(candidate of a, candidate of b)]`` is what two sites lose
    together beyond the sum of their losses; pairs that are left out add.
    """

    metric: str
    unit: str
    loss: Mapping[str, Mapping[str, float]]
    spread: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pairs: Mapping[tuple[str, str], Mapping[tuple[str, str], float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """``costs[site][candidate][axis]`` with axes such as latency_us, size_bytes, bops.

    ``transitions[(a, b)][(format_a, format_b)]`` is the time in µs that a change of format
    between two sites costs. ``overhead`` is what the network costs
    beside its sites, by axis: parameters that belong to no site, for instance.
    """

    costs: Mapping[str, Mapping[str, Mapping[str, float]]]
    transitions: Mapping[tuple[str, str], Mapping[tuple[str, str], float]] = field(
        default_factory=dict
    )
    overhead: Mapping[str, float] = field(default_factory=dict)


# The objective of a certificate whose plan was chosen by the loss of the network itself.
NETWORK = "network"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An assignment with all that is needed to rebuild and to audit it.

    ``loss`` is the sum of the metric's losses, those of pairs included; None where nothing was
    measured (``mpq.assign``). ``certificate`` holds the problem that was solved, and what proves
    the answer: ``mpq.check_plan``.
    """

    version: int
    assignment: Mapping[str, str]
    loss: float | None
    predicted: Predicted
    budget: Mapping[str, float]
    target: str
    metric: str
    solver: str
    certificate: Mapping[str, Any]
    table: Sequence[Mapping[str, Any]]
    constraints: Mapping[str, Any]
    notes: Sequence[str]
    seed: int
    provenance: Mapping[str, str]

    @property
    def minimised(self) -> str | None:
        """The cost that was minimised; None where that was the loss, the network's own included."""
        objective = self.certificate.get("objective")
        return None if objective == NETWORK else objective

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        return asdict(self)

    def _repr_html_(self) -> str:
        """Show what matters of the plan in a notebook."""
        text: str = REPORTS.load("card")(self)
        return text

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from :meth:`to_json`; raise ``PlanError`` for another layout."""
        expected = {f.name for f in fields(cls)}
        if data.get("version") != PLAN_VERSION or set(data) != expected:
            raise PlanError(
                "not a plan of this version",
                expected=f"version {PLAN_VERSION} with {', '.join(sorted(expected))}",
                found=f"version {data.get('version')!r} with {', '.join(sorted(data))}",
                remedy="make the plan again with `mpq plan`",
            )
        return cls(**{**data, "predicted": Predicted(**data["predicted"])})


PLAN_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """What really runs at a site."""

    site: str
    requested: str
    stored_bits: int
    compute: str
    kernel: str
    tier: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What fresh processes measured of an artifact on its device. Latencies in ms.

    Args:
        latency_ms, latency_ms_lower95, latency_ms_upper95: Median and its 95 % interval.
        latency_p95_ms, latency_p95_ms_upper95, latency_p99_ms: Percentiles of single calls. All
            latencies are of the moments in which the machine was as usual, or nearest to it.
        samples: Calls that were timed.
        processes: Fresh processes.
        drift: Slowest block over the fastest, less one.
        reference_drift: The reference workload at its slowest beside a block over its usual time,
            less one.
        repeated: Parts of blocks (10 ms, or a call) that were left out because the machine was
            not as usual.
        memory_bytes: What loading and running the network added to a process.
        energy_mj: Energy of a call in mJ; None where neither processor nor profile tells it.
        energy_source: ``rapl`` or ``profile``; None without energy.
        within_budget: None where the budget bounds nothing that was measured.
        status: The verdict.
        rounds: Plans that were built until this one.
        device: Fingerprint of the device.
        process_spread: Standard deviation of the median between fresh processes, as a share of
            it, by the median of absolute deviations: a process beside other work does not count.
        waited: Share of a block's time in which a thread waited for a core, at its most.
        settled: False where the machine was not as usual in too many blocks: the network may be
            faster than it was measured.
    """

    latency_ms: float
    latency_ms_lower95: float
    latency_ms_upper95: float
    latency_p95_ms: float
    latency_p95_ms_upper95: float
    latency_p99_ms: float
    samples: int
    processes: int
    drift: float
    reference_drift: float
    repeated: int
    memory_bytes: int
    energy_mj: float | None
    energy_source: Literal["rapl", "profile"] | None
    within_budget: bool | None
    status: Literal["accepted", "rejected", "inconclusive", "unbounded"]
    rounds: int = 1
    device: str = ""
    process_spread: float = 0.0
    waited: float = 0.0
    settled: bool = True

    def disturbance(self) -> str:
        """Say how far the machine was from being as usual."""
        return (
            f"the reference workload was up to {100 * self.reference_drift:.0f} % slower than "
            f"usual, threads waited for a core for up to {100 * self.waited:.0f} % of a block, "
            f"and blocks of calls differ by {100 * self.drift:.0f} %"
        )
