"""What a target is: the profile that says what it supports, and the device that it is.

A target is the name or path of a profile, ``local``, or the address of a remote device:
``rpc://host:port/KEY`` or ``{"rpc": {"tracker": "host:port", "key": KEY}}``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpq_compile.cost.profile import Profile, load_profile, profile_of_tier
from mpq_compile.errors import DeviceError, ProfileError
from mpq_compile.kernels.tier import host_tiers, tier_named
from mpq_compile.runtime.absent import AbsentDevice
from mpq_compile.runtime.device import Device, LocalDevice
from mpq_compile.runtime.rpc_address import Address, is_address, parse_endpoint
from mpq_compile.runtime.threads import thread_count

# A name, a path or an address.
TargetLike = str | os.PathLike[str] | Mapping[str, Any]
TRACKER = "MPQ_TRACKER"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A target that was found.

    Args:
        name: What plans call it.
        profile: What it supports.
        device: Where its kernels run; this machine for an analytic one, and one that networks can
            only be built for where a profile's CPU is not here.
    """

    name: str
    profile: Profile
    device: Device


def resolve_target(target: TargetLike) -> Target:
    """Find a target; a remote device is connected to.

    Raises:
        ProfileError: The profile is unknown or malformed, or does not have the device's tier.
        DeviceError: The address is malformed, or the device cannot be reached.
    """
    if isinstance(target, Mapping) or is_address(target):
        address = Address.parse(target)  # type: ignore[arg-type]
        device = _remote(address)
        return Target(name=address.name, profile=profile_of_tier(device.tier.name), device=device)
    profile = load_profile(target)
    return Target(name=str(target), profile=profile, device=_device_of(profile))


def running_device(target: TargetLike) -> Device:
    """Return the device of a target that networks run on.

    Raises:
        ProfileError: Nothing runs on the target.
        DeviceError: The device cannot be reached.
    """
    found = resolve_target(target)
    if found.profile.kind != "cpu":
        raise ProfileError(
            "nothing runs on this target",
            where=found.name,
            expected="this machine or a remote device",
            found=f"kind: {found.profile.kind}",
            remedy="name local, or rpc://host:port/KEY",
        )
    return found.device


def _device_of(profile: Profile) -> Device:
    if profile.reached != "rpc":
        return _here_or_absent(profile)
    device = _remote(_address_of(profile))
    if device.tier.name not in profile.tiers:
        raise ProfileError(
            "the device is not of this profile's kind",
            where=profile.source,
            expected=f"a device with one of the tiers {', '.join(profile.tiers)}",
            found=f"{device.tier.name} at {device.name}",
            remedy="correct rpc_key or tiers, or name the device by its address",
        )
    return device


def _here_or_absent(profile: Profile) -> Device:
    """Return this machine, unless it executes no tier of a CPU's profile."""
    tiers = [tier_named(name) for name in profile.tiers]
    if profile.kind != "cpu" or any(tier in host_tiers() for tier in tiers):
        return LocalDevice()
    return AbsentDevice(profile.name, tiers[0], profile.threads or thread_count())


def _address_of(profile: Profile) -> Address:
    tracker = os.environ.get(TRACKER)
    if not tracker:
        raise DeviceError(
            f"{TRACKER} does not say where the tracker is",
            where=profile.source,
            expected="host:port",
            found="nothing",
            remedy=f"set it, for instance {TRACKER}=127.0.0.1:9190",
        )
    host, port = parse_endpoint(tracker)
    return Address(host=host, port=port, key=str(profile.rpc_key))


def _remote(address: Address) -> Device:
    from mpq_compile.runtime.remote import rpc_device

    return rpc_device(address)
