"""One measurement: what was timed, and what came out. The rows of the store and of its exports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from mpq_compile.errors import ProfileError

# Toolchain and kernels of what neither TVM nor our kernels take part in: never stale by theirs.
INDEPENDENT = "none"


@dataclass(frozen=True, kw_only=True)
class MeasurementKey:
    """What was timed. A change of any part is another measurement.

    Args:
        device: ``fingerprint.device_fingerprint()``.
        toolchain: ``fingerprint.toolchain_hash()``, or ``INDEPENDENT``.
        kernels: ``fingerprint.kernel_hash()``, or ``INDEPENDENT``.
        operator: Operator, such as ``conv2d`` or ``linear``.
        shape: Shapes and strides, spelled by the workload.
        candidate: Name of the candidate.
    """

    device: str
    toolchain: str
    kernels: str
    operator: str
    shape: str
    candidate: str

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, str) or not value or not value.isprintable():
                raise _invalid(name, "a printable string that is not empty", value)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Statistics of ``count`` samples: times in µs, variance in µs², clock in MHz.

    What older versions did not record is None.

    Args:
        count: Samples, each the mean of one block of calls; none is left out.
        median_us, mean_us, variance, min_us: Of all samples.
        clock_mhz: Median clock of the cores over the rounds.
        time: When it ended, ISO 8601 in UTC (:func:`utc_now`).
        low_us, high_us: Interval of the median, 95 %, distribution-free.
        outliers: Samples more than 1.5 interquartile ranges beyond the quartiles.
        repeated: Rounds that were repeated because the reference workload was off.
        load: Median load of the machine.
        reference_us: Median time of the reference workload in the same rounds.
        settled: False where the reference stayed off: the samples are of an unusual time.
    """

    count: int
    median_us: float
    mean_us: float
    variance: float
    min_us: float
    clock_mhz: float | None
    time: str
    low_us: float | None = None
    high_us: float | None = None
    outliers: int | None = None
    repeated: int | None = None
    load: float | None = None
    reference_us: float | None = None
    settled: bool = True

    def __post_init__(self) -> None:
        if type(self.count) is not int or not 1 <= self.count <= _MOST:
            raise _invalid("count", "a whole number ≥ 1", self.count)
        for name in ("median_us", "mean_us", "variance", "min_us"):
            if not _is_amount(getattr(self, name)):
                raise _invalid(name, "a finite number ≥ 0", getattr(self, name))
        for name in _OPTIONAL:
            value = getattr(self, name)
            if value is not None and not _is_amount(value):
                raise _invalid(name, "a finite number ≥ 0, or none", value)
        if self.min_us > self.median_us:
            raise _invalid("min_us", f"at most the median {self.median_us}", self.min_us)
        if type(self.settled) is not bool:
            raise _invalid("settled", "true or false", self.settled)
        if _moment(self.time) is None:
            raise _invalid("time", "ISO 8601 in UTC, as 2025-01-31T12:00:00+00:00", self.time)

    @property
    def half_width(self) -> float | None:
        """Half of the interval of the median, as a share of the median; None where not known."""
        if self.low_us is None or self.high_us is None or not self.median_us:
            return None
        return (self.high_us - self.low_us) / (2 * self.median_us)

    @property
    def moment(self) -> datetime:
        """When it ended."""
        return datetime.fromisoformat(self.time)

    def supersedes(self, other: Measurement) -> bool:
        """Tell whether this one replaces the other of the same key: the newer does.

        Equal times are decided by the values, so that any order of writing ends the same.
        """
        return self._rank() > other._rank()

    def _rank(self) -> tuple[Any, ...]:
        values = (getattr(self, name) for name in VALUE_FIELDS if name != "time")
        return (self.moment, *(-1.0 if v is None else v for v in values))


_OPTIONAL = (
    "clock_mhz", "low_us", "high_us", "outliers", "repeated", "load", "reference_us",
)  # fmt: skip
_MOST = 10**18  # what the database can hold; a NaN or an infinity is not below it

KEY_FIELDS = tuple(field.name for field in fields(MeasurementKey))
VALUE_FIELDS = tuple(field.name for field in fields(Measurement))
COLUMNS = (*KEY_FIELDS, *VALUE_FIELDS)
# What every version recorded.
REQUIRED = COLUMNS[: COLUMNS.index("time") + 1]
Row = tuple[MeasurementKey, Measurement]


def utc_now() -> str:
    """Return the present time for :attr:`Measurement.time`."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def to_record(key: MeasurementKey, value: Measurement) -> dict[str, Any]:
    """Return key and value as one flat JSON-ready mapping."""
    return {**asdict(key), **asdict(value)}


def from_record(record: Mapping[str, Any]) -> tuple[MeasurementKey, Measurement]:
    """Rebuild key and value from :func:`to_record`; raise ``ProfileError`` for anything else.

    Fields that older versions did not write may be missing. SQLite knows no truth values: 0 and 1
    will do.
    """
    if not set(REQUIRED) <= set(record) <= set(COLUMNS):
        raise _invalid("its fields", ", ".join(COLUMNS), ", ".join(record))
    key = MeasurementKey(**{name: record[name] for name in KEY_FIELDS})
    values = {name: record[name] for name in VALUE_FIELDS if name in record}
    settled = values.get("settled", True)
    if settled in (0, 1):
        values["settled"] = bool(settled)
    return key, Measurement(**values)


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and type(value) is not bool and 0 <= value <= _MOST


def _moment(time: object) -> datetime | None:
    """Return the time as a datetime; None unless it is ISO 8601 in UTC."""
    try:
        moment = datetime.fromisoformat(time)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo is not None and not moment.utcoffset() else None


def _invalid(name: str, expected: str, found: object) -> ProfileError:
    return ProfileError(
        f"not a measurement: {name}",
        expected=expected,
        found=found if isinstance(found, str) and found else repr(found),
        remedy="measure again",
    )
