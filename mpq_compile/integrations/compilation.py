"""What one call of ``torch.compile`` compiles: parts between graph breaks, one plan, one budget."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

from mpq_compile.allocate import matches_site
from mpq_compile.closed_loop import compile_session
from mpq_compile.errors import CalibrationError, MpqError, PlanError, nearest
from mpq_compile.integrations.backend_options import BackendOptions
from mpq_compile.integrations.bound_graph import BoundGraph
from mpq_compile.integrations.buffers import buffers_kept
from mpq_compile.integrations.free_batch import parts_of
from mpq_compile.integrations.joint_plan import compile_parts, joined_plan, share_of
from mpq_compile.integrations.model_batches import model_calls, run_batch
from mpq_compile.integrations.part import NOT_SEEN, Part, find_network, shapes_of
from mpq_compile.integrations.recording import Recording, recorded
from mpq_compile.integrations.running_call import RunningCall
from mpq_compile.integrations.runs import Conditions, EagerRun, NetworkRun, Run, never
from mpq_compile.pipeline import assign_session, build_given
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.search.policy import Policy
from mpq_compile.session import Session
from mpq_compile.types import Plan, Site

_LOCK = RLock()


class Compilation:
    """The parts of one compiled model.

    Attributes:
        options: Of the backend.
        parts: In the order in which they first ran; empty until there is a plan.
        plan: One plan for all parts.
        others: Graphs that belong to no part, and why they run in eager PyTorch.
        notes: What else the user should know.
    """

    def __init__(self, options: BackendOptions, model: nn.Module | None) -> None:
        self.options = options
        self.parts: list[Part] = []
        self.plan: Plan | None = None
        self.others: dict[BoundGraph, str] = {}
        self.notes: list[str] = []
        self._model = None if model is None else ref(model)
        self._forget: list[Any] = []

    @property
    def model(self) -> nn.Module | None:
        """The compiled model, while it is alive; None for a function."""
        return None if self._model is None else self._model()

    def names(self) -> dict[int, str]:
        """Return the name of each tensor that the model holds, by the tensor's identity."""
        if self.model is None:
            return {}
        held = (
            *self.model.named_parameters(remove_duplicate=False),
            *self.model.named_buffers(remove_duplicate=False),
        )
        # Of several names of one tensor torch.export takes the last, too.
        return {id(tensor): name for name, tensor in held}

    def on_new_plan(self, forget: Any) -> None:
        """Call ``forget`` whenever there is a new plan: what ran the old one is out of date."""
        self._forget.append(forget)

    def note(self, text: str) -> None:
        """Warn of something, and keep it for :func:`mpq_compile.explain`."""
        if text not in self.notes:
            self.notes.append(text)
            warnings.warn(f"mpq: {text}", RuntimeWarning, stacklevel=2)

    def run_for(self, bound: BoundGraph, args: Sequence[Any], call: RunningCall) -> Run:
        """Return how to run a graph; plan and build first where that was not done."""
        if self.plan is None:
            with _LOCK:
                if self.plan is None:
                    self.calibrate(call)
        inputs = bound.inputs_of(args)
        part = next((p for p in self.parts if p.stands_for(bound, inputs)), None)
        if part is None or part.reason:
            if part is None:
                self._note_other(bound)
            else:
                bound.graph.state |= part.bound.graph.state
            return EagerRun(bound, Conditions(bound, inputs, self.model, None))
        _refuse_changed(part.bound.is_current())
        with _LOCK, torch.inference_mode(False):
            network = part.network_for(bound, _ordinary(inputs), self.options)
        if network is None and shapes_of(inputs, 0) not in part.unbuilt:
            self.note(part.full)
            return EagerRun(bound, never)
        if network is None:
            _warn(bound, part.unbuilt[shapes_of(inputs, 0)])
            return EagerRun(bound, Conditions(bound, inputs, self.model, 0))
        free = int(network.manifest.dynamic_batch)
        return NetworkRun(bound, network, inputs, Conditions(bound, inputs, self.model, free))

    def _note_other(self, bound: BoundGraph) -> None:
        like = [part for part in self.parts if part.resembles(bound)]
        _refuse_changed(all(part.holds(bound) for part in like))
        if bound not in self.others:
            self.others[bound] = NOT_SEEN
            _warn(bound, NOT_SEEN)

    def calibrate(self, call: RunningCall) -> None:
        """Run the calibration batches through the whole model, then plan and build its parts.

        Raises:
            PlanError: There are no batches: neither an option nor a context gave any.
        """
        if self.options.calibration is None:
            raise PlanError(
                "the compiled model was never calibrated",
                where=f"torch.compile({call.name}, backend='mpq')",
                expected="options={'calibration': batches, …}",
                found="no calibration",
                remedy="or call it on some batches within `with mpq.calibrating(compiled):`",
            )
        count = 0
        with buffers_kept(self.model), recorded(Recording(only=self)) as recording:
            recording.probing = True
            call.run(*call.args, **call.kwargs)
            recording.probing = False
            for args, kwargs, labels in model_calls(call, self.options):
                recording.labels = labels
                run_batch(call, args, kwargs, count)
                count += 1
        if not count:
            raise CalibrationError(
                "the calibration data is empty",
                expected="at least one batch",
                found="none (an exhausted generator?)",
                remedy="pass a list of batches, or a fresh DataLoader",
            )
        self.finish(recording)

    def finish(self, recording: Recording) -> None:
        """Plan and build the parts that were recorded, all together."""
        parts = parts_of(recording, self, self.model)
        with _LOCK, torch.inference_mode(False), torch.enable_grad():
            met: dict[str, int] = {}
            for part in parts:
                find_network(part, met, self.options)
                _count(part, met)
            sessions = self._sessions(parts)
            networks = self._networks(sessions)
        quantized = [part for part in parts if part.session is not None]
        for part, network in zip(quantized, networks, strict=True):
            part.plan = network.plan
            part.add(network, part.example)
            part.batches = []
        self.parts, self.others = parts, {}
        joined = joined_plan(sessions, [network.plan for network in networks])
        self.plan = joined if self.options.plan is None else self.options.plan
        for forget in self._forget:
            forget()
        for part in parts:
            if part.reason and part.has_weights:
                _warn(part.bound, part.reason)
        self._note_outside(parts)

    def _note_outside(self, parts: Sequence[Part]) -> None:
        """Say which layers no graph holds: nothing else tells of what Dynamo leaves to Python."""
        held = {id(tensor) for part in parts for tensor in part.bound.constants}
        outside = [
            name or type(module).__name__
            for name, module in (self.model.named_modules() if self.model is not None else ())
            if any(p.ndim > 1 and id(p) not in held for p in module.parameters(recurse=False))
        ]
        if outside:
            self.note(
                f"no graph of Dynamo's has the weights of {_listed(outside)}: where calls use "
                "them, they do so in float; TORCH_LOGS=graph_breaks says why"
            )

    def _sessions(self, parts: Sequence[Part]) -> list[Session]:
        quantizable = [part for part in parts if part.network is not None]
        if not quantizable:
            raise PlanError(
                "no part of the model can be quantized",
                expected="a convolution or linear layer among operators that have a lowering",
                found="; ".join(dict.fromkeys(part.reason for part in parts)) or "no graph at all",
                remedy="; ".join(dict.fromkeys(part.remedy for part in parts if part.remedy))
                or "compile a model with a convolution, a linear layer or an embedding",
            )
        sites = [site for part in quantizable for site in part.network.sites]  # type: ignore[union-attr]
        _check_keys(self.options.constraints or {}, sites)
        for part in quantizable:
            part.session = self.options.session(
                part.captured,
                part.data(labelled=len(quantizable) == 1),
                constraints=self._constraints(part),
            )
        return [part.session for part in quantizable if part.session is not None]

    def _constraints(self, part: Part) -> Mapping[str, Any] | None:
        assert part.network is not None
        given = self.options.constraints
        return given and {
            key: value
            for key, value in given.items()
            if any(matches_site(key, site) for site in part.network.sites)
        }

    def _networks(self, sessions: Sequence[Session]) -> list[CompiledNetwork]:
        options = self.options
        if options.plan is not None:
            return self._planned(sessions, options.plan)
        if options.assignment is not None:
            return self._assigned(sessions, options.assignment)
        if len(sessions) > 1:
            return compile_parts(sessions, options.budget, options.verify)
        how = (options.minimize, None, options.verify)
        return [compile_session(sessions[0], options.budget, *how)]

    def _planned(self, sessions: Sequence[Session], plan: Plan) -> list[CompiledNetwork]:
        self._note_left_over(sessions, plan.assignment)
        if len(sessions) == 1:
            share = share_of(sessions[0], plan.assignment)
            given = replace(plan, assignment=share)
            return [build_given(sessions[0], given, self.options.verify)]
        # What the plan predicts, and bounds, is the sum of all parts.
        return self._assigned(sessions, plan.assignment)

    def _assigned(
        self, sessions: Sequence[Session], assignment: str | Mapping[str, str] | Policy
    ) -> list[CompiledNetwork]:
        given = assignment.assignment if isinstance(assignment, Policy) else assignment
        if not isinstance(given, str):
            self._note_left_over(sessions, given)
        shares = [given if isinstance(given, str) else share_of(s, given) for s in sessions]
        pairs = zip(sessions, shares, strict=True)
        return [assign_session(session, share, self.options.verify) for session, share in pairs]

    def _note_left_over(self, sessions: Sequence[Session], given: Mapping[str, str]) -> None:
        known = {site.id for session in sessions for site in session.network.sites}
        if left := [site for site in given if site not in known]:
            self.note(f"no compiled part has these sites of the plan: {_listed(left)}")


# By Dynamo's object for one call of torch.compile: it lives as long as the compiled model.
_COMPILATIONS: WeakKeyDictionary[Any, Compilation] = WeakKeyDictionary()


def compilation_of(call: RunningCall, options: Mapping[str, Any]) -> Compilation:
    """Return the compilation that a call belongs to, begun where it is new.

    Raises:
        PlanError: An option is wrong.
    """
    if call.context not in _COMPILATIONS:
        _COMPILATIONS[call.context] = Compilation(BackendOptions.read(options), call.model)
    return _COMPILATIONS[call.context]


def known_compilation(context: Any) -> Compilation | None:
    """Return the compilation of one call of ``torch.compile``; None before its first call."""
    return _COMPILATIONS.get(context)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")


def _count(part: Part, met: dict[str, int]) -> None:
    for site in part.network.sites if part.network else ():
        stem = site.id.partition("#")[0]
        met[stem] = met.get(stem, 0) + 1


def _check_keys(constraints: Mapping[str, Any], sites: Sequence[Site]) -> None:
    for key in constraints:
        if not any(matches_site(key, site) for site in sites):
            raise PlanError(
                f"constraint {key!r} matches no site of any part",
                expected="a site id, a module path or re:PATTERN",
                found=repr(key),
                remedy=nearest(key, [site.path for site in sites]),
            )


def _refuse_changed(current: bool) -> None:
    if not current:
        raise MpqError(
            "weights have changed since they were quantized",
            where="torch.compile(backend='mpq')",
            expected="the weights that the parts were compiled with",
            found="parameters or buffers that were replaced or written into",
            remedy="show it calibration data again (mpq.calibrating), or call torch.compile anew",
        )


def _ordinary(inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return inputs that may be used outside of inference mode."""
    return tuple(value.clone() if value.is_inference() else value for value in inputs)


def _warn(bound: BoundGraph, reason: str) -> None:
    layers = ", ".join(sorted({name.rpartition(".")[0] or name for name in bound.names})[:3])
    warnings.warn(
        f"mpq: a part of the model ({layers or 'without weights'}, …) runs in eager PyTorch: "
        f"{reason}; mpq.explain(compiled) shows all parts",
        RuntimeWarning,
        stacklevel=2,
    )
