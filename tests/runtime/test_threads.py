"""How many threads kernels have, and where TVM may put them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mpq_compile.runtime.threads import allowed_cpus

_SCRIPT = """
import os, sys
os.sched_setaffinity(0, {int(cpu) for cpu in sys.argv[1].split(",")})
from mpq_compile.runtime.threads import thread_count
print(thread_count(), os.environ["TVM_NUM_THREADS"], os.environ.get("TVM_BIND_THREADS"))
"""

LINUX = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")


def _threads_on(*cpus: int) -> list[str]:
    hidden = ("MPQ_THREADS", "TVM_NUM_THREADS", "TVM_BIND_THREADS")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    command = [sys.executable, "-c", _SCRIPT, ",".join(map(str, cpus))]
    return subprocess.check_output(command, env=environment, text=True).split()


@LINUX
def test_threads_are_bound_where_the_process_may_use_the_first_cpus():
    assert _threads_on(0) == ["1", "1", "None"]


@LINUX
@pytest.mark.skipif(1 not in allowed_cpus(), reason="needs a second CPU")
def test_threads_are_not_bound_to_cpus_outside_the_affinity():
    assert _threads_on(1) == ["1", "1", "0"]
