"""The whole network as one function: no virtual machine, no fork for each kernel.

``main(inputs…, parameters, arena, outputs…)`` starts the tasks once. Each calls the phases of all
kernels in order and meets the others at a barrier (``kernels.barrier``) after every phase. An
output that is an input changed in place is no argument of its own. Parameters lie in one buffer,
and what is computed on the way in the arena, at offsets that are known when the function is built.

On demand it writes down when each task began and ended each phase (``lower.clock``), so that every
artifact can say where its time goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, ir
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.target import Target

from mpq_compile.kernels.barrier import FLAG_WORDS, arrive, barrier_ir, wait
from mpq_compile.kernels.emit import llvm_functions
from mpq_compile.kernels.tier import Tier
from mpq_compile.lower.arena import Span, aligned, offsets_of, place
from mpq_compile.lower.clock import STAMP_BYTES, stamp, stamp_ir
from mpq_compile.lower.phases import Kernel, cut
from mpq_compile.lower.program import Operand, Program

LAUNCH = "pragma_parallel_launch_point"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A module whose ``main`` runs the network.

    Args:
        module: TIR only, for ``tvm.compile``.
        arena: Bytes of the buffer that a caller lends to ``main``.
        phases: How many phases each call of the program has.
    """

    module: IRModule
    arena: int
    phases: Sequence[int]


def build_entry(module: IRModule, program: Program, tier: Tier, tasks: int) -> Entry:
    """Return the entry of a lowered module and its program, for ``tasks`` tasks."""
    return _Builder(module, program, tier, tasks).build()


class _Builder:
    def __init__(self, module: IRModule, program: Program, tier: Tier, tasks: int) -> None:
        self.program, self.tier, self.tasks = program, tier, tasks
        target = Target(tier.target(tasks))
        names = list(dict.fromkeys(call.function for call in program.calls))
        self.kernels: Mapping[str, Kernel] = {
            name: cut(module[name], target, tasks) for name in names
        }
        self.phases = {
            name: [ir.GlobalVar(f"{name}_{i}") for i in range(len(kernel.phases))]
            for name, kernel in self.kernels.items()
        }
        self.target = target
        # The word that asks for a trace has a cache line of its own, before the tasks' flags.
        self.flag_bytes = aligned(4 * FLAG_WORDS * (1 + tasks))
        self.values, self.scratch, used = self._places()
        self.stamps_at = self.flag_bytes + aligned(used)
        phases = sum(len(self.phases[call.function]) for call in program.calls)
        self.arena_bytes = self.stamps_at + 2 * STAMP_BYTES * phases * tasks
        self.parameters, self.parameter_bytes = offsets_of([p.size for p in program.parameters])

    def _places(self) -> tuple[dict[int, int], list[list[int]], int]:
        """Return offsets of values (outputs excluded) and of each call's scratch, and the end."""
        last = dict.fromkeys(range(len(self.program.values)), -1)
        first: dict[int, int] = {}
        for step, call in enumerate(self.program.calls):
            for operand in (*call.operands, *call.results):
                if operand.space == "value":
                    first.setdefault(operand.index, step)
                    last[operand.index] = step
        kept = [index for index in first if index not in self.program.outputs]
        spans = [Span(size=self.program.values[i].size, first=first[i], last=last[i]) for i in kept]
        counts = []
        for step, call in enumerate(self.program.calls):
            sizes = self.kernels[call.function].scratch
            spans += [Span(size=size, first=step, last=step) for size in sizes]
            counts.append(len(sizes))
        offsets, end = place(spans)
        rest = iter(offsets[len(kept) :])
        scratch = [[next(rest) for _ in range(count)] for count in counts]
        return dict(zip(kept, offsets, strict=False)), scratch, end

    def build(self) -> Entry:
        functions = {
            variable: function
            for name, kernel in self.kernels.items()
            for variable, function in zip(self.phases[name], kernel.phases, strict=True)
        }
        functions[ir.GlobalVar("main")] = self._main()
        counts = [len(self.phases[call.function]) for call in self.program.calls]
        return Entry(module=IRModule(functions), arena=self.arena_bytes, phases=counts)

    def _main(self) -> Any:
        barrier = barrier_ir(self.tier) if self.tasks > 1 else ""
        with IRBuilder() as builder, prim_func(s_tir=True):
            T.func_name("main")
            self._declare()
            with llvm_functions(barrier), llvm_functions(stamp_ir()):
                self._body()
        return builder.get().with_attr("target", self.target)

    def _declare(self) -> None:
        def argument(name: str, cells: int, dtype: str) -> Any:
            return T.arg(name, T.buffer((cells,), dtype))

        program = self.program
        self.inputs = [argument(f"x{i}", t.cells, t.dtype) for i, t in enumerate(program.inputs)]
        self.blob = argument("parameters", max(self.parameter_bytes, 1), "uint8")
        self.arena = argument("arena", self.arena_bytes // 4, "int32")
        values = [program.values[index] for index in program.outputs]
        arguments = [argument(f"y{i}", t.cells, t.dtype) for i, t in enumerate(values)]
        self.outputs = dict(zip(program.outputs, arguments, strict=True))

    def _body(self) -> None:
        calls = list(self._calls())
        if self.tasks == 1:
            for number, (function, pointers) in enumerate(calls):
                self._share(number, function, pointers, T.int32(0))
            return
        for task in range(self.tasks):
            T.buffer_store(self.arena, T.int32(0), [(1 + task) * FLAG_WORDS])
        with T.attr(T.int32(0), LAUNCH, 1):
            self._rounds(calls)

    def _calls(self) -> Iterator[tuple[ir.GlobalVar, list[Any]]]:
        """Yield every phase of every call, with its pointers."""
        for call, scratch in zip(self.program.calls, self.scratch, strict=True):
            pointers = [self._pointer(operand, "r") for operand in call.operands]
            pointers += [self._pointer(operand, "w") for operand in call.results]
            pointers += [self._in_arena(offset) for offset in scratch]
            for function in self.phases[call.function]:
                yield function, pointers

    def _rounds(self, calls: Sequence[tuple[ir.GlobalVar, list[Any]]]) -> None:
        """Emit what a thread does: its tasks of each phase, then a barrier.

        A share is a loop over tasks: where the pool has fewer threads than there are tasks, one
        thread does the work of several, and no one waits for what will not come.
        """
        flags = self.arena.access_ptr("rw", offset=FLAG_WORDS)
        for finished, (function, pointers) in enumerate(calls, start=1):
            with T.parallel(self.tasks) as task:
                self._share(finished - 1, function, pointers, task)
                arrive(flags, task, finished)
            if finished < len(calls):
                with T.parallel(self.tasks) as task:
                    wait(flags, self.tasks, finished)

    def _share(self, number: int, function: ir.GlobalVar, pointers: list[Any], task: Any) -> None:
        """Emit a task's share of a phase, between two looks at the clock for whoever traces."""
        self._stamp(number, task, 0)
        T.evaluate(ir.Call(function, [*pointers, task]))
        self._stamp(number, task, 1)

    def _stamp(self, number: int, task: Any, end: int) -> None:
        place = (number * self.tasks + task) * 2 + end
        words = self.stamps_at // 4 + place * (STAMP_BYTES // 4)
        stamp(self.arena.access_ptr("r"), self.arena.access_ptr("w", offset=words))

    def _pointer(self, operand: Operand, access: str) -> Any:
        if operand.space == "input":
            return self.inputs[operand.index].access_ptr(access)
        if operand.space == "parameter":
            return self.blob.access_ptr(access, offset=self.parameters[operand.index])
        if operand.index in self.outputs:
            return self.outputs[operand.index].access_ptr(access)
        return self._in_arena(self.values[operand.index])

    def _in_arena(self, offset: int) -> Any:
        return self.arena.access_ptr("rw", offset=(self.flag_bytes + offset) // 4)
