"""Where a remote device is found: ``rpc://host:port/KEY``, a tracker and a key there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpq_compile.errors import DeviceError

SCHEME = "rpc://"
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_EXPECTED = 'rpc://host:port/KEY, or {"rpc": {"tracker": "host:port", "key": KEY}}'


@dataclass(frozen=True, kw_only=True)
class Address:
    """A key at a tracker: one device, or a farm of equal ones.

    Args:
        host, port: Of the tracker.
        key: Of its servers.
    """

    host: str
    port: int
    key: str

    @property
    def tracker(self) -> str:
        """``host:port`` of the tracker."""
        return f"{self.host}:{self.port}"

    @property
    def name(self) -> str:
        """The address as plans and messages write it."""
        return f"{SCHEME}{self.tracker}/{self.key}"

    @classmethod
    def parse(cls, target: str | Mapping[str, Any]) -> Address:
        """Read an address; raise ``DeviceError`` where it is malformed."""
        if isinstance(target, str):
            tracker, _, key = target.removeprefix(SCHEME).partition("/")
        else:
            tracker, key = _fields(target)
        host, port = parse_endpoint(tracker, found=target)
        if not _KEY.fullmatch(key):
            raise _malformed(target)
        return cls(host=host, port=port, key=key)


def is_address(target: Any) -> bool:
    """Tell whether a target names a remote device by its address."""
    return isinstance(target, Mapping) or (isinstance(target, str) and target.startswith(SCHEME))


def parse_endpoint(text: str, found: Any = None) -> tuple[str, int]:
    """Return host and port of ``host:port``; raise ``DeviceError`` where it is malformed."""
    host, colon, port = text.rpartition(":")
    if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise _malformed(text if found is None else found)
    return host, int(port)


def _fields(target: Mapping[str, Any]) -> tuple[str, str]:
    inner = target.get("rpc") if set(target) == {"rpc"} else None
    if not isinstance(inner, Mapping) or set(inner) != {"tracker", "key"}:
        raise _malformed(target)
    return str(inner["tracker"]), str(inner["key"])


def _malformed(found: Any) -> DeviceError:
    return DeviceError(
        "not the address of a remote device",
        expected=_EXPECTED,
        found=repr(found),
        remedy="write for instance rpc://127.0.0.1:9190/raspberry",
    )
