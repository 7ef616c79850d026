"""Times that environment variables set."""

from __future__ import annotations

import os

from mpq_compile.errors import DeviceError

# Seconds after which a process neither waits for the machine nor measures anything again: it says
# that the machine was not as usual, and others decide.
_PATIENCE_S = 10.0
# Seconds that a process may take beside them.
_PROCESS_S = 300.0
# What waits for a process takes no number of seconds, however large.
_MOST_S = 86_400.0


def patience_s() -> float:
    """Return the seconds that a process spends on a machine that is not as usual.

    Raises:
        DeviceError: ``MPQ_PATIENCE`` is not a number of seconds.
    """
    return seconds_of("MPQ_PATIENCE", _PATIENCE_S, "waiting for the machine")


def process_limit_s() -> float:
    """Return the seconds that a process which times networks may take, before it is ended.

    Raises:
        DeviceError: ``MPQ_PATIENCE`` is not a number of seconds.
    """
    return _PROCESS_S + patience_s()


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
    if not 0 <= seconds <= _MOST_S:
        raise DeviceError(
            f"{variable} is not a time",
            expected=f"seconds to spend on {purpose}, a day at most, or 0 for none",
            found=repr(given),
            remedy=f"unset it for {default:g} s, or set it to e.g. 60",
        )
    return seconds
