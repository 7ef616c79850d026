"""What assignments take on the device: built, and timed as a budget is verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from mpq_compile.anchors import schedules_digest
from mpq_compile.building import build_plans
from mpq_compile.digest import content_digest
from mpq_compile.memo import Memo, evaluations_dir
from mpq_compile.report.frontier import Measured
from mpq_compile.runtime.fingerprint import kernel_hash, lowering_hash, toolchain_hash
from mpq_compile.runtime.verify import PROCESSES, verify_artifact

if TYPE_CHECKING:
    from mpq_compile.session import Session


class NetworkTimes:
    """Times of a session's assignments, each taken once; what was taken is kept on disk.

    A time that is kept was found on another occasion than those taken now: the key holds device,
    toolchain, kernels, lowering and schedules, but no hour.

    Args:
        session: Builds the networks.
        processes: Fresh processes for each.
    """

    def __init__(self, session: Session, processes: int = PROCESSES) -> None:
        self._session, self._processes = session, processes
        self._memo = Memo(evaluations_dir())
        self._taken: dict[str, Measured] = {}

    def of(self, assignment: Mapping[str, str]) -> Measured:
        """Return the latency of an assignment."""
        key = self._key(assignment)
        if key not in self._taken:
            kept = self._memo.get(key)
            self._taken[key] = Measured(**kept) if kept else self._measured(assignment, key)
        return self._taken[key]

    def _key(self, assignment: Mapping[str, str]) -> str:
        session = self._session
        key = content_digest(
            "latency",
            session.digest(),
            dict(assignment),
            session.device.fingerprint,
            toolchain_hash(),
            kernel_hash(),
            lowering_hash(),
            schedules_digest(session, assignment),
        )
        assert key is not None
        return key

    def _measured(self, assignment: Mapping[str, str], key: str) -> Measured:
        (network,) = build_plans(self._session, [self._session.bare_plan(assignment)])
        seen = verify_artifact(network.folder, network.device, {}, self._processes)
        measured = Measured(
            latency_ms=seen.latency_ms,
            latency_ms_lower95=seen.latency_ms_lower95,
            latency_ms_upper95=seen.latency_ms_upper95,
        )
        self._memo.put(key, asdict(measured))
        return measured
