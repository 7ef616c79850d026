"""Addresses of remote devices: both spellings, and what is wrong with others."""

from __future__ import annotations

from typing import Any

import pytest

from mpq_compile.errors import DeviceError
from mpq_compile.runtime.rpc_address import Address, is_address

HERE = Address(host="127.0.0.1", port=9190, key="pi-4.b")


def test_both_spellings_are_one_address() -> None:
    text, mapping = HERE.name, {"rpc": {"tracker": "127.0.0.1:9190", "key": "pi-4.b"}}
    assert text == "rpc://127.0.0.1:9190/pi-4.b"
    assert Address.parse(text) == Address.parse(mapping) == HERE
    assert is_address(text) and is_address(mapping)
    assert not is_address("local") and not is_address("x86_64_vnni.yaml")


@pytest.mark.parametrize(
    "target",
    [
        "rpc://host/key",
        "rpc://host:port/key",
        "rpc://host:0/key",
        "rpc://host:70000/key",
        "rpc://:9190/key",
        "rpc://host:9190",
        "rpc://host:9190/a/b",
        "rpc://host:9190/a key",
        {"rpc": {"tracker": "host:9190"}},
        {"rpc": {"tracker": "host:9190", "key": "a", "port": 1}},
        {"rpc": "host:9190"},
        {"grpc": {}},
    ],
)
def test_malformed_addresses_are_shown_how(target: Any) -> None:
    with pytest.raises(DeviceError, match="not the address of a remote device") as caught:
        Address.parse(target)
    assert caught.value.found == repr(target)
    assert "rpc://host:port/KEY" in str(caught.value.expected)
