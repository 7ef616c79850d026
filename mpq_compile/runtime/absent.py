"""A CPU that is not here: networks are built for it, and run elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mpq_compile.errors import DeviceError
from mpq_compile.kernels.tier import Tier
from mpq_compile.runtime.artifact import open_artifact
from mpq_compile.runtime.device import Conditions, Device
from mpq_compile.runtime.kernel_timing import Run, Task
from mpq_compile.runtime.timing import Timings
from mpq_compile.runtime.trace import Trace


class AbsentDevice:
    """What is known of a device from its profile alone: enough to build, not to run or to time.

    Args:
        name: Name of the profile.
        tier: Tier of the kernels.
        threads: Threads of the kernels.
    """

    present = False

    def __init__(self, name: str, tier: Tier, threads: int) -> None:
        self.name = name
        self.tier = tier
        self.threads = threads

    @property
    def fingerprint(self) -> str:
        """A name that no measurement has."""
        return f"absent-{self.name}-{self.tier.name}-{self.threads}t"

    def workers(self) -> Sequence[Device]:
        """Raise: there is none."""
        raise self._not_here("measure on it")

    def lock(self) -> AbstractContextManager[None]:
        """Raise: it cannot be held."""
        raise self._not_here("hold it")

    def conditions(self) -> Conditions:
        """Raise: they are not known."""
        raise self._not_here("read its clock and load")

    def kernels(self, tasks: Sequence[Task]) -> list[Run]:
        """Raise: they cannot be timed."""
        raise self._not_here("time kernels")

    def time_networks(self, folders: Sequence[Path], blocks: int) -> Timings:
        """Raise: they cannot be timed."""
        raise self._not_here("time networks")

    def trace_network(self, folder: Path, calls: int) -> Trace:
        """Raise: it cannot be traced."""
        raise self._not_here("trace a network")

    def open(self, folder: Path) -> _Unopened:
        """Check an artifact; running it will raise."""
        open_artifact(folder)
        return _Unopened(self._not_here("run a network"))

    def _not_here(self, asked: str) -> DeviceError:
        return DeviceError(
            f"the device is not at hand: cannot {asked}",
            where=self.name,
            expected=f"a CPU that executes {self.tier.name}",
            found="one that does not",
            remedy="reach one over RPC (`mpq device serve` there), or build only: mpq.assign, "
            "or `mpq compile --plan PLAN --no-verify`",
        )


class _Unopened:
    """A network that was built and cannot be run here."""

    def __init__(self, reason: DeviceError) -> None:
        self._reason = reason

    def run(self, inputs: Sequence[Any], in_place: bool = False) -> list[Any]:
        """Raise what is missing."""
        raise self._reason
