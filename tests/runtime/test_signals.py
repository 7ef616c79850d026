"""A server ends at a signal, whichever of its threads the system hands it to."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# The main thread does not take the signal, so that its wait is not interrupted: what happens where
# a signal comes just before a wait begins.
PROGRAM = """
import signal, sys, time
from mpq_compile.runtime.processes import until_ended

number = int(sys.argv[1])
signal.pthread_sigmask(signal.SIG_BLOCK, {number})

def work():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    print("working", flush=True)
    while True:
        time.sleep(60)

try:
    until_ended(work)
except KeyboardInterrupt:
    print("ended")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_interrupts_no_wait_is_seen(number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(int(number))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "working\n"
        process.send_signal(number)
        assert process.communicate(timeout=60)[0] == "ended\n"
    finally:
        process.kill()
        process.wait()
