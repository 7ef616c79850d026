"""Times that environment variables set."""

from __future__ import annotations

import os

from mpq_compile.errors import DeviceError


def seconds_of(variable: str, default: float, purpose: str) -> float:
    """Return the seconds that an environment variable sets, ``default`` where it is unset.

    Raises:
        DeviceError: It is not a number of seconds.
    """
    given = os.environ.get(variable, "")
    try:
        seconds = float(given) if given else default
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise DeviceError(
            f"{variable} is not a time",
            expected=f"seconds to spend on {purpose}, or 0 for none",
            found=repr(given),
            remedy=f"unset it for {default:g} s, or set it to e.g. 60",
        )
    return seconds
