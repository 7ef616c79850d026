"""A barrier for tasks that run a whole network side by side, without a fork for each kernel.

Each task owns a flag on a cache line of its own. It arrives by storing the number of the round it
has finished, and waits until every flag has reached that round: about 50 ns on two cores, against
800 ns for a fork and a join. A task that has waited long gives its core away.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.tier import Tier

# int32 words between two flags: a cache line.
FLAG_WORDS = 16
# Looks at a flag before the core is given away, and between two times. A more patient task keeps
# a busy machine from running the one it waits for: with one core taken, networks took 14 times
# longer.
_PATIENCE = 64

# Tells a core that its thread is spinning, by architecture.
_PAUSE = {"x86_64": "pause", "aarch64": "yield"}

_IR = """
declare i32 @sched_yield()
define linkonce_odr void @mpq_arrive(ptr %flags, i32 %task, i32 %round) alwaysinline {{
  %at = mul i32 %task, {words}
  %own = getelementptr i32, ptr %flags, i32 %at
  store atomic i32 %round, ptr %own release, align 4
  ret void
}}
define linkonce_odr void @mpq_wait(ptr %flags, i32 %tasks, i32 %round) noinline {{
entry:
  br label %next
next:
  %task = phi i32 [ 0, %entry ], [ %following, %arrived ]
  %all = icmp sge i32 %task, %tasks
  br i1 %all, label %done, label %watch
watch:
  %at = mul i32 %task, {words}
  %flag = getelementptr i32, ptr %flags, i32 %at
  br label %look
look:
  %looks = phi i32 [ 0, %watch ], [ %more, %again ]
  %seen = load atomic i32, ptr %flag acquire, align 4
  %there = icmp sge i32 %seen, %round
  br i1 %there, label %arrived, label %pause
pause:
  call void asm sideeffect "{pause}", ""()
  %more = add i32 %looks, 1
  %tired = icmp ugt i32 %more, {patience}
  br i1 %tired, label %yield, label %again
yield:
  %ignored = call i32 @sched_yield()
  br label %again
again:
  br label %look
arrived:
  %following = add i32 %task, 1
  br label %next
done:
  ret void
}}
"""


def barrier_ir(tier: Tier) -> str:
    """Return the LLVM IR of ``mpq_arrive`` and ``mpq_wait`` for a tier's architecture."""
    pause = next((_PAUSE[name] for name in tier.machine if name in _PAUSE), "")
    return _IR.format(words=FLAG_WORDS, pause=pause, patience=_PATIENCE)


def arrive(flags: Any, task: Any, finished: int) -> None:
    """Tell the other tasks that ``task`` has finished a round; ``flags`` is a pointer."""
    T.evaluate(T.call_extern("void", "mpq_arrive", flags, task, T.int32(finished)))


def wait(flags: Any, tasks: int, finished: int) -> None:
    """Wait until all ``tasks`` have finished a round."""
    T.evaluate(T.call_extern("void", "mpq_wait", flags, T.int32(tasks), T.int32(finished)))
