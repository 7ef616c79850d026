"""Times of kernels that were never measured, learned from those that were.

Two estimators, and the better one is taken: a roofline for each kind of kernel, and
gradient-boosted trees on what it leaves. Better is who has the smaller error on shapes that were
left out of the fit, on the table at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mpq_compile.cost.kernel_features import Features, features_of
from mpq_compile.cost.keys import key_of
from mpq_compile.cost.measure import measure
from mpq_compile.cost.measurement import Row
from mpq_compile.cost.store import Store
from mpq_compile.errors import ProfileError, TimeRanOutError
from mpq_compile.runtime.device import Device
from mpq_compile.runtime.fingerprint import kernel_hash, toolchain_hash
from mpq_compile.runtime.kernel_timing import Task

# Folds in which shapes are left out when an estimator is chosen.
FOLDS = 8
_LEAST_ROWS = 12
# Of a normal distribution, by the median of its absolute values.
_SD_OF_MEDIAN_ERROR = 1.48
_NUMBERS = (
    "pixels", "columns", "depth", "outputs", "groups", "window", "stride", "spread", "padded",
    "bits", "group_size", "dynamic", "stored", "residual", "input", "macs", "bytes", "weights",
)  # fmt: skip

# Vectors and register blocks are used in full by multiples of these.
_LANES = (("outputs", 16), ("depth", 64), ("columns", 8))


class Estimator(Protocol):
    """Learns from features and times in µs; gives times in µs."""

    def fit(self, features: Sequence[Features], us: np.ndarray) -> None:
        """Learn."""
        ...

    def predict(self, features: Sequence[Features]) -> np.ndarray:
        """Return times in µs."""
        ...


class Roofline:
    """t = launch + macs / rate + bytes / bandwidth for each kind of kernel, none negative.

    Fitted to relative errors by non-negative least squares. A kind that was never measured takes
    the slowest of all kinds of its compute format, or of all.
    """

    def fit(self, features: Sequence[Features], us: np.ndarray) -> None:
        """Fit each kind by itself."""
        from scipy.optimize import nnls

        self._terms: dict[str, np.ndarray] = {}
        kinds = np.array([f.kind for f in features])
        for kind in dict.fromkeys(kinds):
            chosen = kinds == kind
            matrix = _work([f for f in features if f.kind == kind]) / us[chosen, None]
            scale = np.maximum(np.linalg.norm(matrix, axis=0), 1e-30)
            solution, _ = nnls(matrix / scale, np.ones(int(chosen.sum())))
            self._terms[kind] = solution / scale

    def predict(self, features: Sequence[Features]) -> np.ndarray:
        """Return times in µs."""
        work = _work(features)
        times = [row @ self._of(f.kind, row) for f, row in zip(features, work, strict=True)]
        return np.maximum(np.array(times), 1e-3)

    def _of(self, kind: str, row: np.ndarray) -> np.ndarray:
        if kind in self._terms:
            return self._terms[kind]
        compute = kind.split()[-1]
        alike = [terms for name, terms in self._terms.items() if name.split()[-1] == compute]
        return max(alike or self._terms.values(), key=lambda terms: float(row @ terms))


class BoostedTrees:
    """Gradient-boosted trees on the logarithm of measured over roofline."""

    def fit(self, features: Sequence[Features], us: np.ndarray) -> None:
        """Fit the roofline, then trees to what it leaves."""
        from sklearn.ensemble import GradientBoostingRegressor

        self._roofline = Roofline()
        self._roofline.fit(features, us)
        self._kinds = sorted({f.kind for f in features})
        self._trees = GradientBoostingRegressor(
            loss="huber",
            n_estimators=300,
            learning_rate=0.06,
            max_depth=4,
            subsample=0.7,
            random_state=0,
        )
        left = np.log(us / self._roofline.predict(features))
        self._trees.fit(self._matrix(features), left)

    def predict(self, features: Sequence[Features]) -> np.ndarray:
        """Return times in µs."""
        factor = np.exp(self._trees.predict(self._matrix(features)))
        return self._roofline.predict(features) * factor

    def _matrix(self, features: Sequence[Features]) -> np.ndarray:
        rows = []
        for f, us in zip(features, self._roofline.predict(features), strict=True):
            sizes = [math.log1p(f.numbers.get(name, 0.0)) for name in _NUMBERS]
            lanes = [f.numbers.get(name, 0) % size for name, size in _LANES]
            rows.append([*sizes, *lanes, math.log(us), *(f.kind == kind for kind in self._kinds)])
        return np.array(rows, dtype=float)


ESTIMATORS: Mapping[str, type[Estimator]] = {"roofline": Roofline, "boosted trees": BoostedTrees}


def _work(features: Sequence[Features]) -> np.ndarray:
    """Return [1, macs, bytes] of each kernel."""
    return np.array([[1.0, f.macs, f.bytes] for f in features])


@dataclass(frozen=True, kw_only=True)
class Table:
    """Measured kernels of one device."""

    features: Sequence[Features]
    us: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Row], device: str, toolchain: str, kernels: str) -> Table:
        """Take what belongs to this device, toolchain and kernels."""
        found: dict[str, tuple[Features, float]] = {}
        for key, value in rows:
            if (key.device, key.toolchain, key.kernels) != (device, toolchain, kernels):
                continue
            features = features_of(key.shape) if key.operator in _OPERATORS else None
            if features is None:
                continue
            # Of several schedules of one kernel a plan takes the fastest.
            name = f"{features.shape}/{features.kind}/{sorted(features.numbers.items())}"
            _, before = found.get(name, (features, math.inf))
            found[name] = features, min(before, value.median_us)
        return cls(
            features=[features for features, _ in found.values()],
            us=np.array([us for _, us in found.values()]),
        )

    def left_out_errors(self, make: type[Estimator], folds: int | None = FOLDS) -> np.ndarray:
        """Return |estimate / measured − 1| of each kernel, its shape being left out of the fit.

        Args:
            make: The estimator.
            folds: Groups of shapes that are left out together; None leaves each out by itself.
        """
        shapes = sorted({f.shape for f in self.features})
        order = np.random.default_rng(0).permutation(len(shapes))
        count = len(shapes) if folds is None else min(folds, len(shapes))
        fold_of = {shapes[i]: n % count for n, i in enumerate(order)}
        fold = np.array([fold_of[f.shape] for f in self.features])
        errors = np.zeros(len(self.us))
        for number in range(count):
            out = fold == number
            learner = make()
            learner.fit(
                [f for f, o in zip(self.features, out, strict=True) if not o], self.us[~out]
            )
            estimates = learner.predict([f for f, o in zip(self.features, out, strict=True) if o])
            errors[out] = np.abs(estimates / self.us[out] - 1)
        return errors


_OPERATORS = (
    "conv2d",
    "depthwise_conv2d",
    "conv_transpose2d",
    "linear",
    "embedding",
    "convert",
    "quantize_rows",
)


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """An estimator that was chosen and fitted.

    Args:
        name: The estimator's.
        error: Its median relative error on shapes that were left out.
        learner: The fitted estimator.
        kinds: Kinds of kernels that it saw.
    """

    name: str
    error: float
    learner: Estimator
    kinds: frozenset[str]

    @classmethod
    def learned(cls, table: Table, where: str | None = None) -> Estimates:
        """Choose by the error on shapes left out, then fit to the whole table.

        Args:
            table: What was measured.
            where: Names the table in an error.

        Raises:
            ProfileError: Too little was measured to learn from.
        """
        shapes = {f.shape for f in table.features if f.macs}
        if len(shapes) < _LEAST_ROWS:
            raise ProfileError(
                "too few measurements to estimate others from",
                where=where,
                expected=f"at least {_LEAST_ROWS} shapes of layers measured on this device",
                found=f"{len(shapes)}",
                remedy="run `mpq profile --sweep` once, or allow more time to measure; "
                "MPQ_DB names the database, which must be writable for that",
            )
        errors = {
            name: float(np.median(table.left_out_errors(make))) for name, make in ESTIMATORS.items()
        }
        best = min(errors, key=errors.__getitem__)
        learner = ESTIMATORS[best]()
        learner.fit(table.features, table.us)
        kinds = frozenset(f.kind for f in table.features)
        return cls(name=best, error=errors[best], learner=learner, kinds=kinds)

    def error_of(self, shape: str) -> float:
        """Return the standard deviation of an estimate, relative.

        A kind of kernel that was never measured takes the roofline of another: that may be off by
        its whole.
        """
        found = features_of(shape)
        if found is None or found.kind not in self.kinds:
            return 1.0
        return _SD_OF_MEDIAN_ERROR * self.error

    def us(self, shapes: Sequence[str]) -> dict[str, float]:
        """Return times in µs by the names that workloads are stored under.

        Raises:
            ProfileError: A kernel has no features: it can only be measured.
        """
        features = []
        for shape in shapes:
            found = features_of(shape)
            if found is None:
                raise ProfileError(
                    "the time of this kernel cannot be estimated",
                    where=shape,
                    expected="a matrix multiply or a conversion",
                    remedy="allow more time to measure",
                )
            features.append(found)
        return dict(zip(shapes, map(float, self.learner.predict(features)), strict=True))


@dataclass(frozen=True, kw_only=True)
class KernelTimes:
    """Times in µs by ``workload.key``; the errors of those that are estimated, and how they are."""

    us: Mapping[str, float]
    estimated: Mapping[str, float] = field(default_factory=dict)
    estimator: str = ""


def kernel_times(
    tasks: Iterable[Task],
    store: Store,
    device: Device,
    budget_s: float = math.inf,
    estimate: bool = False,
    again: bool = False,
) -> KernelTimes:
    """Return the time of each task: measured, and estimated where that is allowed.

    Args:
        tasks: What is needed.
        store: Measurements; what it lacks is measured.
        device: Where kernels run.
        budget_s: Seconds to measure.
        estimate: Estimate what could not be measured in that time, or where the store is
            read-only.
        again: As in ``measure``.

    Raises:
        DeviceError: The time ran out, and nothing may be estimated.
        ProfileError: Too little was measured to estimate from.
    """
    needed = list(tasks)
    if not estimate:
        measured = measure(needed, store, device, budget_s=budget_s, again=again)
        return KernelTimes(us={name: value.median_us for name, value in measured.items()})
    if budget_s > 0 and not store.read_only:
        with suppress(TimeRanOutError):
            measure(needed, store, device, budget_s=budget_s, again=again)
    keys = {task.workload.key: key_of(task, device) for task in needed}
    known = store.get_many(keys.values())
    us = {name: known[key].median_us for name, key in keys.items() if key in known}
    missing = [name for name in keys if name not in us]
    if not missing:
        return KernelTimes(us=us)
    table = Table.of(store.items(), device.fingerprint, toolchain_hash(), kernel_hash())
    estimates = Estimates.learned(table, where=str(store.path))
    return KernelTimes(
        us=us | estimates.us(missing),
        estimated={name: estimates.error_of(name) for name in missing},
        estimator=f"{estimates.name}, median error {100 * estimates.error:.0f} % on other shapes",
    )
