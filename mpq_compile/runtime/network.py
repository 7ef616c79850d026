"""A deployed network: call it, look at its plan and audit, save it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mpq_compile.errors import DeviceError, MpqError
from mpq_compile.registry import REPORTS
from mpq_compile.runtime.artifact import (
    Manifest,
    open_artifact,
    put_in_place,
    read_verification,
    write_verification,
)
from mpq_compile.runtime.device import Device, LocalDevice
from mpq_compile.runtime.executor import Executor
from mpq_compile.runtime.native_export import export_native
from mpq_compile.runtime.rpc_address import Address, is_address
from mpq_compile.runtime.trace import CALLS, Trace, traceable, write_trace
from mpq_compile.types import AuditRow, Verification

log = logging.getLogger(__name__)


class CompiledNetwork:
    """A network on its device.

    Call it with what the model takes: torch tensors give torch tensors (any whole number of
    samples where the batch is free), NumPy arrays give NumPy arrays.

    Attributes:
        plan: The plan it was built from.
        audit: One row a site: requested, stored bits, compute, kernel, tier.
        verification: What was measured; None before ``verify``.
        folder: Its artifact.
        device: Where it runs.
        executor: The network as it was loaded there.
    """

    def __init__(
        self,
        folder: Path,
        reference: Any = None,
        owner: tempfile.TemporaryDirectory[str] | None = None,
        device: Device | None = None,
        materialized: Any = None,
    ) -> None:
        self.folder = Path(folder)
        self.manifest, self.plan = open_artifact(self.folder)
        self.verification: Verification | None = read_verification(self.folder)
        self.device: Device = device or own_device(self.manifest)
        self.executor = self.device.open(self.folder)
        self._reference = reference
        self._materialized = materialized
        self._owner = owner  # keeps a temporary artifact for as long as the network lives

    @property
    def audit(self) -> Sequence[AuditRow]:
        """What really runs at each site."""
        return self.manifest.audit

    @property
    def reference(self) -> Callable[..., Any]:
        """The materialized graph in PyTorch: the oracle that the device equals.

        Raises:
            MpqError: The network was loaded from disk, without the model.
        """
        return self._of_torch(self._reference)

    @property
    def materialized(self) -> Any:
        """The same graph with what its sites were given (``passes.materialized.Materialized``).

        Raises:
            MpqError: The network was loaded from disk, without the model.
        """
        return self._of_torch(self._materialized)

    def _of_torch(self, known: Any) -> Any:
        if known is None:
            raise MpqError(
                "a loaded artifact has no PyTorch reference",
                where=str(self.folder),
                expected="a network from mpq.compile or mpq.assign",
                remedy="build it again: mpq.compile(…, plan=net.plan), or mpq.assign",
            )
        return known

    def __call__(self, *inputs: Any, in_place: bool = False, **named: Any) -> Any:
        """Run the network; a single output comes alone, several as the model returns them.

        Args:
            inputs: What the model takes.
            in_place: Change inputs that the model returns with rows written into them (the cache
                of a decoder) instead of copies of them. What is returned then is what was passed.
            named: Inputs by the names that the model's ``forward`` has, behind those by place.

        Raises:
            MpqError: There is no input, one is missing, or a name is unknown.
        """
        given = self._in_order(inputs, named) if named else list(inputs)
        if not given:
            raise MpqError("no input", expected=f"{len(self.manifest.inputs)} tensors")
        outputs = self.executor.run(given, in_place)
        return _as_returned(outputs, self.manifest.out_spec, _torch(given[0]))

    def _in_order(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        # Artifacts of before names were kept have numbers.
        names = [entry.get("name", f"input{i}") for i, entry in enumerate(self.manifest.inputs)]
        wanted = names[len(inputs) :]
        if set(wanted) != set(named):
            raise MpqError(
                "the inputs are not those of the network",
                expected=", ".join(names),
                found=", ".join([*names[: len(inputs)], *named]),
                remedy="leave out what the network was built without, and pass all others",
            )
        return [*inputs, *(named[name] for name in wanted)]

    @property
    def run_compiled_shapes(self) -> Callable[[Sequence[Any]], list[Any]]:
        """What runs torch tensors of exactly the compiled shapes, without checking them.

        It returns the outputs in a flat list: the shortest way to the network.
        """
        executor = self.executor
        return executor.run_tensors if isinstance(executor, Executor) else executor.run

    def trace(self, calls: int = CALLS) -> Trace:
        """Time every kernel of the network on its device; the artifact keeps what was seen.

        Args:
            calls: That are timed, in a fresh process, for some 20 s at most; the medians are
                returned.

        Raises:
            MpqError: Fewer than one call is asked for.
            ArtifactError: Relax's virtual machine runs the network, or the artifact is of before
                it said which kernels it calls.
            DeviceError: The device is not at hand, or the process failed.
        """
        if calls < 1:
            raise MpqError("no call to trace", where="calls", expected="at least 1", found=calls)
        traceable(self.folder)
        with self.device.lock():
            trace = self.device.trace_network(self.folder, calls)
        try:
            write_trace(self.folder, trace)
        except OSError as error:
            log.warning("the trace is not kept beside the artifact: %s", error)
        return trace

    def save(self, folder: str | Path) -> Path:
        """Write the artifact to ``folder``, whole or not at all; return the path."""
        if self.verification is not None:
            write_verification(self.folder, self.verification)
        put_in_place(self.folder, Path(folder))
        return Path(folder)

    def export_native(self, folder: str | Path) -> Path:
        """Write what a program without Python needs to run the network; return the path.

        Raises:
            ArtifactError: Relax's virtual machine runs the network.
        """
        return export_native(self.folder, folder)

    def report(
        self, path: str | Path, title: str | None = None, frontiers: Sequence[Any] = ()
    ) -> Path:
        """Write one HTML file with all that is known of the network; return the path.

        Args:
            path: The file.
            title: Name of the network; None for that of the artifact's folder.
            frontiers: Of the same network, from :func:`mpq_compile.frontier`.
        """
        written: Path = REPORTS.load("page")(self, path, title, frontiers)
        return written

    @property
    def size_bytes(self) -> int:
        """Bytes of the stored weights: packed codes, scales, biases and tables."""
        return (self.folder / "weights.bin").stat().st_size

    def _repr_html_(self) -> str:
        """Show what matters of the network in a notebook."""
        text: str = REPORTS.load("card")(self)
        return text

    def __repr__(self) -> str:
        names = sorted(set(self.plan.assignment.values()))
        return f"CompiledNetwork({len(self.plan.assignment)} sites: {', '.join(names)})"


def _torch(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"


def _as_returned(outputs: list[Any], spec: str, as_torch: bool) -> Any:
    if not as_torch:
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
    from torch.utils import _pytree as pytree

    return pytree.tree_unflatten(outputs, _tree(spec))


@cache
def _tree(spec: str) -> Any:
    """Read the tree of outputs; every call of a network needs it."""
    from torch.utils import _pytree as pytree

    return pytree.treespec_loads(spec)


def load(folder: str | Path, device: Device | None = None) -> CompiledNetwork:
    """Load an artifact, checking its hashes, on the device it was built for or on another.

    Needs no torch.

    Raises:
        ArtifactError: It is missing, damaged or of another version.
        DeviceError: The device lacks what its kernels need, or cannot be reached.
    """
    return CompiledNetwork(Path(folder), device=device)


def reached_device(manifest: Manifest) -> str:
    """Return the name of the device that an artifact was built for."""
    return manifest.provenance.get("reached", LocalDevice.name)


def own_device(manifest: Manifest) -> Device:
    """Return the device that an artifact was built for: a remote one, or this machine.

    Raises:
        DeviceError: It cannot be reached.
    """
    reached = reached_device(manifest)
    if not is_address(reached):
        return LocalDevice()
    from mpq_compile.runtime.remote import rpc_device

    try:
        return rpc_device(Address.parse(reached))
    except DeviceError as error:
        raise DeviceError(
            f"the artifact's own device cannot be reached: {error.message}",
            where=error.where,
            expected=f"{reached}, which it was built for",
            found=error.found,
            remedy=f"{error.remedy}; or name another device (--target local)",
        ) from error
