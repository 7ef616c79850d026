"""Energy counters of the processor (Linux powercap), where this process may read them."""

from __future__ import annotations

from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Reads the packages' energy counters; ``joules`` is None where there are none.

    Args:
        folder: The powercap folder; its zones ``<type>:<n>`` are packages, deeper ones parts.
    """

    def __init__(self, folder: Path = _POWERCAP) -> None:
        zones = sorted(folder.glob("*:*")) if folder.is_dir() else []
        packages = [zone for zone in zones if zone.name.count(":") == 1]
        self._zones = [zone for zone in packages if _read(zone / "energy_uj") is not None]

    def start(self) -> list[int | None]:
        """Return the counters, for :meth:`joules`."""
        return [_read(zone / "energy_uj") for zone in self._zones]

    def joules(self, start: list[int | None]) -> float | None:
        """Return the energy since ``start`` in J; a counter that went round once is understood."""
        if not self._zones:
            return None
        total = 0
        for zone, before in zip(self._zones, start, strict=True):
            now = _read(zone / "energy_uj")
            if now is None or before is None:
                return None
            span = _read(zone / "max_energy_range_uj") or 0
            total += now - before if now >= before else now - before + span
        return total * 1e-6


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
