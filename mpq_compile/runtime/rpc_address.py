"""Where a remote device is found: ``rpc://host:port/KEY``, a tracker and a key there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpq_compile.errors import DeviceError

SCHEME = "rpc://"
MOST_PORT = 65535
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
# Also what lacks the scheme or a part of it: host:port, host:port/key, rpc:host.
_MEANT = re.compile(r"rpc:|[^/\\]+:\d+(/|$)")
_EXAMPLE = "rpc://127.0.0.1:9190/raspberry"
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
            if not target.startswith(SCHEME):
                raise _malformed(target)
            tracker, _, key = target.removeprefix(SCHEME).partition("/")
        else:
            tracker, key = _fields(target)
        endpoint = _endpoint(tracker)
        if endpoint is None or not _KEY.fullmatch(key):
            raise _malformed(target)
        return cls(host=endpoint[0], port=endpoint[1], key=key)

    @classmethod
    def of(cls, tracker: str, key: str) -> Address:
        """Put an address together; raise ``DeviceError`` where one of its parts is malformed."""
        host, port = parse_endpoint(tracker)
        if not _KEY.fullmatch(key):
            raise DeviceError(
                "not the key of a device",
                where=f"key {key!r}",
                expected="a key without a slash: letters, digits, and . _ - after the first",
                found=repr(key),
                remedy="write for instance raspberry",
            )
        return cls(host=host, port=port, key=key)


def is_address(target: Any) -> bool:
    """Tell whether a target means a remote device, be its address well-formed or not."""
    if isinstance(target, str):
        return _MEANT.match(target) is not None
    return isinstance(target, Mapping)


def parse_endpoint(text: str) -> tuple[str, int]:
    """Return host and port of a tracker; raise ``DeviceError`` where they are malformed."""
    endpoint = _endpoint(text)
    if endpoint is None:
        raise DeviceError(
            "not the address of a tracker",
            where=f"tracker {text!r}",
            expected=f"HOST:PORT, with a port from 1 to {MOST_PORT}",
            found=repr(text),
            remedy="write for instance 127.0.0.1:9190",
        )
    return endpoint


def _endpoint(text: str) -> tuple[str, int] | None:
    host, _, port = text.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) <= MOST_PORT:
        return None
    return host, int(port)


def _fields(target: Mapping[str, Any]) -> tuple[str, str]:
    inner = target.get("rpc") if set(target) == {"rpc"} else None
    if not isinstance(inner, Mapping) or set(inner) != {"tracker", "key"}:
        raise _malformed(target)
    return str(inner["tracker"]), str(inner["key"])


def _malformed(found: Any) -> DeviceError:
    completed = f"{SCHEME}{found}"
    whole = isinstance(found, str) and "/" in found and _endpoint(found.partition("/")[0])
    return DeviceError(
        "not the address of a remote device",
        where="the target",
        expected=_EXPECTED,
        found=repr(found),
        remedy=f"write {completed}" if whole else f"write for instance {_EXAMPLE}",
    )
