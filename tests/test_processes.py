"""The signals that end a run."""

import subprocess
import sys


def test_an_interrupt_that_a_destructor_swallows_comes_again():
    program = """
import os, signal, time
from lbdist.processes import Interrupts
class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
with Interrupts("ended") as interrupts:
    try:
        Deaf()
        print("lost", flush=True)
        time.sleep(20)
    except KeyboardInterrupt:
        print("came", *interrupts.came)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["lost", "came", "15", "15"] and done.returncode == 0


def test_an_interrupt_that_got_through_is_not_sent_again_while_ray_ends():
    """Behind Python's back: Ray's core orders an abort, and puts SIGTERM back to the system's default."""
    program = """
import ctypes, os, signal, time
from lbdist import processes
with processes.Interrupts("ended") as interrupts:
    try:
        signal.alarm(2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
    except KeyboardInterrupt:
        with processes.closing("ended"):
            ctypes.CDLL(None).signal(int(signal.SIGTERM), None)
            time.sleep(1.5 * processes.AGAIN_SECONDS)
        print(*interrupts.came, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)  # a second one: the handler is back
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "15\n" and done.stderr == "lbdist: ended\n" and done.returncode == 143
