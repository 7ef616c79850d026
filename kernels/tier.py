"""Tiers: what a CPU offers to the kernels, decided by its flags. Does not import tvm.

A tier is data. A generator asks it for the vector width and for the name of the dot product and
never for the CPU's model name, which virtual machines report wrongly.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from mpq_compile.errors import DeviceError, nearest


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One level of instruction set.

    Args:
        name: Name in audits, measurements and ``MPQ_TIER``.
        machine: ``platform.machine()`` values it runs on; empty for any.
        flags: CPU flags it needs.
        mcpu: LLVM CPU that enables the instructions; None for the plain architecture.
        lanes: int32 / float32 lanes of one vector register.
        dot: Integer dot product: "amx", "vpdpbusd", "vpmaddwd", "usmmla", "sdot" or "widen".
        k_group: Input channels that one dot product step consumes.
        bf16_dot: True where vdpbf16ps exists.
        bf16_matrix: True where bfmmla exists; with neither, bf16 is widened to float32.
        registers: Vector registers, which bounds the register block.
        prefetch_bytes: How far ahead few-row kernels prefetch weights; 0 for not at all. Xeons
            need it beyond L2; on Zen 4 it costs a fifth of the speed.
    """

    name: str
    machine: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()
    mcpu: str | None = None
    mattr: tuple[str, ...] = ()
    lanes: int = 4
    dot: str = "widen"
    k_group: int = 1
    bf16_dot: bool = False
    bf16_matrix: bool = False
    registers: int = 16
    prefetch_bytes: int = 0

    def target(self, threads: int) -> dict[str, Any]:
        """Return the TVM target as a plain dictionary (for ``tvm.target.Target``)."""
        spec: dict[str, Any] = {"kind": "llvm", "num-cores": threads}
        if self.triple:
            spec["mtriple"] = self.triple
        if self.mcpu:
            spec["mcpu"] = self.mcpu
        if self.mattr:
            spec["mattr"] = list(self.mattr)
        return spec

    @property
    def triple(self) -> str | None:
        """LLVM's name of its architecture on Linux; None for whatever this machine is."""
        return f"{self.machine[0]}-linux-gnu" if self.machine else None

    @property
    def has_sdot(self) -> bool:
        """Tell whether the tier multiplies s8 × s8 four products a lane."""
        return self.dot in ("usmmla", "sdot")

    @property
    def narrow_sums(self) -> bool:
        """Tell whether products of 4-bit weights are summed in 16 bits, faster than in 32."""
        return self.dot == "vpmaddwd"

    def on(self, machine: str) -> Tier:
        """Return the tier on one architecture: the generic one is compiled for any."""
        return self if self.machine else replace(self, machine=(machine,))

    def runs_on(self, machine: str, flags: frozenset[str]) -> bool:
        """Tell whether a CPU of this architecture and these flags executes the tier."""
        return (not self.machine or machine in self.machine) and self.flags <= flags


_X86 = ("x86_64", "AMD64")
_ARM = ("aarch64", "arm64")
_AVX2 = frozenset({"avx2", "fma"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
_VNNI = _AVX512 | {"avx512_vnni"}
_DOTPROD = frozenset({"asimddp"})
_I8MM = _DOTPROD | {"i8mm"}

# Best first: detection takes the first tier that the CPU executes.
TIERS: Mapping[str, Tier] = {
    tier.name: tier
    for tier in (
        Tier(
            name="amx",
            machine=_X86,
            flags=_VNNI | {"amx_tile", "amx_int8", "amx_bf16", "avx512_bf16"},
            mcpu="sapphirerapids",
            lanes=16,
            dot="amx",
            k_group=4,
            bf16_dot=True,
            registers=32,
            prefetch_bytes=4096,
        ),
        Tier(
            name="vnni_bf16",
            machine=_X86,
            flags=_VNNI | {"avx512_bf16"},
            mcpu="cooperlake",
            lanes=16,
            dot="vpdpbusd",
            k_group=4,
            bf16_dot=True,
            registers=32,
        ),
        Tier(
            name="vnni",
            machine=_X86,
            flags=_VNNI,
            mcpu="cascadelake",
            lanes=16,
            dot="vpdpbusd",
            k_group=4,
            registers=32,
            prefetch_bytes=4096,
        ),
        Tier(
            name="avx2",
            machine=_X86,
            flags=_AVX2,
            mcpu="haswell",
            lanes=8,
            dot="vpmaddwd",
            k_group=2,
        ),
        Tier(
            name="neon_i8mm_bf16",
            machine=_ARM,
            flags=_I8MM | {"bf16"},
            mattr=("+neon", "+dotprod", "+i8mm", "+bf16"),
            lanes=4,
            dot="usmmla",
            k_group=4,
            bf16_matrix=True,
            registers=32,
        ),
        Tier(
            name="neon_i8mm",
            machine=_ARM,
            flags=_I8MM,
            mattr=("+neon", "+dotprod", "+i8mm"),
            lanes=4,
            dot="usmmla",
            k_group=4,
            registers=32,
        ),
        Tier(
            name="neon",
            machine=_ARM,
            flags=_DOTPROD,
            mattr=("+neon", "+dotprod"),
            lanes=4,
            dot="sdot",
            k_group=4,
            registers=32,
        ),
        Tier(name="generic"),
    )
}


@cache
def host_flags() -> frozenset[str]:
    """Return the CPU flags of this machine as Linux names them; empty where unreadable."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return cpu_flags(lines)
    except OSError:
        return frozenset()


def cpu_flags(lines: Iterable[str]) -> frozenset[str]:
    """Return the flags of the first CPU in the text of /proc/cpuinfo; x86 and Arm spell the key
    differently."""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def tier_named(name: str) -> Tier:
    """Return a tier by name; raise ``DeviceError`` with the nearest name for an unknown one."""
    if name not in TIERS:
        raise DeviceError(
            f"unknown tier {name!r}",
            expected=", ".join(TIERS),
            found=repr(name),
            remedy=nearest(name, TIERS),
        )
    return TIERS[name]


def host_tiers() -> list[Tier]:
    """Return every tier this machine executes, best first."""
    return tiers_on(platform.machine(), host_flags())


def tiers_on(machine: str, flags: frozenset[str]) -> list[Tier]:
    """Return every tier that a CPU of an architecture executes, best first."""
    return [tier for tier in TIERS.values() if tier.runs_on(machine, flags)]


def detect_tier() -> Tier:
    """Return the tier named by ``MPQ_TIER``, else the best one this machine executes."""
    forced = os.environ.get("MPQ_TIER")
    if not forced:
        return host_tiers()[0]
    tier = tier_named(forced)
    if tier not in host_tiers():
        raise DeviceError(
            f"MPQ_TIER={forced} cannot run on this CPU",
            expected=f"flags {', '.join(sorted(tier.flags))}",
            found=f"missing {', '.join(sorted(tier.flags - host_flags()))}",
            remedy="unset MPQ_TIER, or choose one of " + ", ".join(t.name for t in host_tiers()),
        )
    return tier
