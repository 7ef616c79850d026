"""The class of an accelerator: found where a profile says, and made when something is measured."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mpq_compile.cost.accelerator_workload import Workload
from mpq_compile.cost.measurement import INDEPENDENT, MeasurementKey
from mpq_compile.cost.profile import Profile
from mpq_compile.errors import DeviceError, ProfileError, nearest
from mpq_compile.registry import import_file


class Accelerator(Protocol):
    """What the class has to offer."""

    def measure(self, workload: Workload) -> float:
        """Run a layer and return how long it took, in seconds."""
        ...


@dataclass(frozen=True, kw_only=True)
class AcceleratorClass:
    """A class that was found, and what its measurements are filed under."""

    make: Callable[[], Any]
    profile: str
    fingerprint: str

    @contextmanager
    def opened(self) -> Iterator[Accelerator]:
        """Make an instance, and close it at the end where it has ``close``."""
        with blamed(self.profile, "the accelerator cannot be opened"):
            instance = self.make()
        try:
            yield instance
        finally:
            close = getattr(instance, "close", None)
            if close is not None:
                with blamed(self.profile, "the accelerator cannot be closed"):
                    close()

    def key(self, workload: Workload) -> MeasurementKey:
        """Return the key of a workload's time."""
        return MeasurementKey(
            device=self.fingerprint,
            toolchain=INDEPENDENT,
            kernels=INDEPENDENT,
            operator=workload.operator,
            shape=workload.key,
            candidate=workload.candidate,
        )


def load_accelerator(profile: Profile) -> AcceleratorClass:
    """Import the class that a profile's ``device`` names.

    ``file.py:Class`` is relative to the profile; ``package.module:Class`` is looked for on
    ``sys.path`` and then beside the profile.

    Raises:
        ProfileError: It cannot be imported, is no class or has no method ``measure``.
    """
    assert profile.device is not None, "the schema asks for a device where reached is class"
    module_name, _, class_name = profile.device.rpartition(":")
    module = _module(module_name, profile)
    found = vars(module).get(class_name)
    if not inspect.isclass(found):
        own = [
            name
            for name, value in inspect.getmembers(module, inspect.isclass)
            if value.__module__ == module.__name__
        ]
        raise _no_class(
            profile,
            f"{module_name} has no class {class_name!r}",
            repr(found),
            nearest(class_name, own),
        )
    if not callable(getattr(found, "measure", None)):
        raise _no_class(
            profile,
            f"the class {class_name!r} has no method measure",
            ", ".join(name for name in vars(found) if name[0] != "_") or "no method",
            "add measure(self, workload), which returns seconds",
        )
    return AcceleratorClass(
        make=found, profile=profile.name, fingerprint=_fingerprint(profile, found)
    )


def _fingerprint(profile: Profile, found: type) -> str:
    """Return name, version and a digest of the class's file; what that imports has the version."""
    try:
        content = Path(inspect.getfile(found)).read_bytes()
    except (TypeError, OSError) as error:
        raise _no_class(
            profile,
            "the class has no file, by which a change of it would be known",
            str(error),
            "define it in a module of its own",
        ) from error
    name = _label(profile, found, "name", found.__name__)
    version = _label(profile, found, "version", "0")
    digest = hashlib.sha256(content).hexdigest()[:16]
    return f"{profile.name}-{name}-{version}-{digest}"


def _label(profile: Profile, found: type, attribute: str, default: str) -> str:
    """Return an attribute of the class itself: it is part of a key before an instance is made."""
    value = getattr(found, attribute, default)
    if isinstance(value, (str, int, float)) and str(value).isprintable() and str(value):
        return str(value)
    raise _no_class(
        profile,
        f"{attribute} of {found.__name__} is not a plain value",
        repr(value),
        f'write {attribute} = "1" in the class, or leave it out',
    )


def _module(name: str, profile: Profile) -> Any:
    """Import a file beside the profile, or a module."""
    folder = Path(profile.source).resolve().parent
    beside = folder / (name if name.endswith(".py") else f"{name.replace('.', '/')}.py")
    try:
        if name.endswith(".py") or (not _is_importable(name) and beside.is_file()):
            return import_file(beside)
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _no_class(
            profile,
            f"{name} cannot be imported",
            _described(error),
            f"correct it, put it on the path (PYTHONPATH), or name a file beside {profile.source}",
        ) from error


def _is_importable(name: str) -> bool:
    """Tell whether ``sys.path`` has a module; its packages are imported by that."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}".rstrip(": ")


def _no_class(profile: Profile, message: str, found: str, remedy: str) -> ProfileError:
    return ProfileError(
        message,
        where=f"{profile.source}: device",
        expected="package.module:Class or file.py:Class, whose measure(workload) returns seconds",
        found=found,
        remedy=remedy,
    )


@contextmanager
def blamed(where: str, message: str) -> Iterator[None]:
    """Turn what the owner's code raises into a ``DeviceError`` with its place."""
    try:
        yield
    except Exception as error:
        raise DeviceError(
            message,
            where=where,
            expected="code that runs without an exception",
            found=_described(error),
            remedy="correct the class; MPQ_DEBUG=1 shows the traceback",
        ) from error
