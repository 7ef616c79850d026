"""``torch.compile(model, backend="mpq", options={…})``.

Found by its entry point (``torch_dynamo_backends``) where the package is installed; importing this
module registers it where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx
from torch._dynamo import list_backends, register_backend

from mpq_compile.integrations.bound_graph import BoundGraph
from mpq_compile.integrations.compilation import Compilation, compilation_of
from mpq_compile.integrations.dynamo_graph import DynamoGraph
from mpq_compile.integrations.recording import CURRENT, Recording
from mpq_compile.integrations.running_call import running_call
from mpq_compile.integrations.runs import Run

NAME = "mpq"


class GraphCall:
    """What Dynamo calls in place of a graph.

    Compiling waits for the first call: only then are there real tensors, and errors reach the
    user as they are, whatever ``torch._dynamo.config.suppress_errors`` says.

    Args:
        graph: The graph.
        options: As the user gave them.
    """

    def __init__(self, graph: DynamoGraph, options: Mapping[str, Any]) -> None:
        self._graph, self._options = graph, options
        self._bound: list[BoundGraph] = []
        self._runs: list[Run] = []
        self._last: Run | None = None
        self._compilation: Compilation | None = None

    def __call__(self, *args: Any) -> Any:
        last = self._last
        if last is not None and CURRENT.get() is None and last.fits(args):
            return last(args)
        return self._other(args)

    def _other(self, args: Sequence[Any]) -> Any:
        recording = self._recording()
        if recording is None:
            known = next((run for run in self._runs if run.fits(args)), None)
            if known is not None:
                self._last = known
                return known(args)
        call = running_call()
        compilation = compilation_of(call, self._options)
        self._belong_to(compilation)
        bound = self._bind(args, compilation)
        bound.refuse_training(args, call.model)
        if recording is not None and recording.accepts(compilation):
            return recording.run(compilation, bound, args, call)
        run = compilation.run_for(bound, args, call)
        if run.fits(args):
            self._runs.append(run)
            self._last = run
        return run(args)

    def _recording(self) -> Recording | None:
        """Return the recording that the graph's calls may belong to."""
        recording = CURRENT.get()
        known = self._compilation
        if recording is None or (known is not None and not recording.accepts(known)):
            return None
        return recording

    def _belong_to(self, compilation: Compilation) -> None:
        if self._compilation is None:
            self._compilation = compilation
            compilation.on_new_plan(self._forget)
            if self._graph.is_last:
                compilation.note(
                    "Dynamo's recompile_limit is reached: what needs another graph of this "
                    "function runs in eager PyTorch from now on"
                )

    def _forget(self) -> None:
        self._bound, self._runs, self._last = [], [], None

    def _bind(self, args: Sequence[Any], compilation: Compilation) -> BoundGraph:
        for bound in self._bound:
            if bound.holds(args) and bound.is_current():
                return bound
        bound = BoundGraph(self._graph, args, compilation.names())
        self._bound.append(bound)
        return bound


class Backend:
    """The backend as Dynamo knows it: takes a graph, returns what to call in its place.

    It equals nothing, itself included. Dynamo shares compiled code between calls of
    ``torch.compile`` whose backends and options are equal; ours hold calibration data, which has
    no truth value, and the weights of one model.
    """

    __name__ = NAME
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return False

    def __call__(
        self,
        module: fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        options: Mapping[str, Any] | None = None,
        mode: str | None = None,
    ) -> GraphCall:
        """Take a graph; ``options`` are checked when it is first called."""
        given = dict(options or {})
        graph = DynamoGraph(module, example_inputs)
        graph.drop_guards_of_constants()
        return GraphCall(graph, {**given, **_mode(mode)})


def _mode(mode: str | None) -> dict[str, str]:
    """A mode is Inductor's affair: as an option of ours it is refused like any unknown one."""
    return {} if mode is None else {"mode": mode}


mpq = Backend()

if NAME not in list_backends(exclude_tags=()):
    register_backend(mpq, name=NAME)
