"""Times that a running network writes down while it is asked to: Linux's monotonic clock, in ns.

A cycle counter would cost less, but has another unit on every processor, and none that a program
may read on some.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from mpq_compile.lower.interface import TRACED

STAMP_BYTES = 8
# Linux's number of the clock that never goes back. Its two words are seconds and nanoseconds on
# every processor of 64 bits.
_MONOTONIC = 1

_IR = """
declare i32 @clock_gettime(i32, ptr)
define linkonce_odr void @mpq_write_time(ptr %place) noinline cold {{
  %time = alloca [2 x i64], align 8
  %failed = call i32 @clock_gettime(i32 {clock}, ptr %time)
  %seconds = load i64, ptr %time, align 8
  %rest = getelementptr i64, ptr %time, i64 1
  %nanoseconds = load i64, ptr %rest, align 8
  %whole = mul i64 %seconds, 1000000000
  %now = add i64 %whole, %nanoseconds
  store i64 %now, ptr %place, align 8
  ret void
}}
define linkonce_odr void @mpq_stamp(ptr %asked, ptr %place) alwaysinline {{
  %word = load i32, ptr %asked, align 4
  %traced = icmp eq i32 %word, {traced}
  br i1 %traced, label %write, label %done
write:
  call void @mpq_write_time(ptr %place)
  br label %done
done:
  ret void
}}
"""


def stamp_ir() -> str:
    """Return the LLVM IR of ``mpq_stamp``."""
    return _IR.format(clock=_MONOTONIC, traced=TRACED)


def stamp(asked: Any, place: Any) -> None:
    """Write the time to ``place`` where the word at ``asked`` is ``TRACED``; both are pointers."""
    T.evaluate(T.call_extern("void", "mpq_stamp", asked, place))
