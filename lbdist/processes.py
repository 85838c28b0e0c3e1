"""The signals that end a run, and the processes that it leaves to nobody: a local Ray's."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import select
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

from lbdist.errors import warn

if TYPE_CHECKING:
    import psutil  # takes its time, in which no signal is held yet

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)

AGAIN_SECONDS = 2.0
"""After which an interrupt that got lost is sent again."""

WATCH_SECONDS = 1.0

INTERRUPT_SECONDS = 0.02
"""By how much a part of Ray may die before an interrupt is here that it got as well: systemd, Slurm and
`timeout` send it to every process. Not longer, since Ray then ends this process, with lines of its own."""

START_SECONDS = 20.0
"""How long a local Ray's processes are watched closely, since some of them are not there yet."""

VITAL = ("raylet", "gcs_server", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Processes without which a local Ray is no more: a raylet dies with its agents."""

_known: dict[int, psutil.Process] = {}
_arrived: list[int] = []  # a descriptor that interrupts are read from, as soon as the system has them here
_closing: list[str] = []
_timers: list[threading.Timer] = []


KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""The environment variables that an object store's keys are taken from."""


def without_keys(text: str) -> str:
    """A text without the keys of a URI in it, which are this process's and its children's from here on.

    So no file, row or log that a study writes holds one.

    Example:
        >>> without_keys("storage=s3://bucket/folder")
        'storage=s3://bucket/folder'
    """
    found = re.search(r"s3://([^/@:\s]*):([^/@\s]*)@", text)
    if found:
        os.environ.update(zip(KEYS, map(unquote, found.groups()), strict=True))
    return re.sub(r"://[^/@\s]*@", "://", text)


def settle() -> None:
    """Gives this process a home and a name where the system has none, as in containers: libraries ask.

    The home is the folder for temporary files.
    """
    known = (os.environ.get("HOME"), os.environ.get("USER") or os.environ.get("LOGNAME"))
    with contextlib.suppress(KeyError):
        entry = pwd.getpwuid(os.getuid())
        known = known[0] or entry.pw_dir, known[1] or entry.pw_name
    if not known[0]:
        os.environ["HOME"] = tempfile.gettempdir()
    if not known[1]:
        os.environ["USER"] = f"user-{os.getuid()}"


def for_shell(word: str) -> str:
    """A word of a command line as a shell reads it back.

    Example:
        >>> print(for_shell("seeds=3"), for_shell("remedy=[none]"), for_shell("storage='a b'"))
        seeds=3 'remedy=[none]' "storage='a b'"
    """
    if "'" in word and not re.search(r'["$`\\!]', word):
        return f'"{word}"'
    return shlex.quote(word)


def go_on(command: str) -> str:
    """What every line says that tells of an end before the end."""
    return f"what is finished is kept. To go on: {command}"


class Interrupts:
    """Ctrl-C and SIGTERM, while the context lasts: the first is a KeyboardInterrupt, a second ends at once.

    A KeyboardInterrupt that is raised in a destructor or in a callback is lost, and the run would go on; so
    the signal is sent again until one gets through.

    Attributes:
        came: The signals that came, since Tune hands on a KeyboardInterrupt of its own.
        last: What is said when a second one ends the run.
    """

    def __init__(self, last: str) -> None:
        self.came: list[int] = []
        self.last = last
        self._again = False

    def __enter__(self) -> Interrupts:
        self._previous = {kind: signal.signal(kind, self._interrupt) for kind in INTERRUPTS}
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._woken = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        _arrived[:] = self._pipe[:1]
        return self

    def __exit__(self, *_: object) -> None:
        # one that is being sent again just now must not meet the handlers of before, which would end us
        for kind in self._previous:
            signal.signal(kind, signal.SIG_IGN)
        _got_through()
        for kind, handler in self._previous.items():
            signal.signal(kind, handler)
        _arrived.clear()
        signal.set_wakeup_fd(self._woken)
        for descriptor in self._pipe:
            os.close(descriptor)

    def _interrupt(self, number: int, frame: Any) -> None:
        again, self._again = self._again, False
        if again and _closing:
            return  # it had got through, just when it was sent again
        if _closing or (self.came and not again):
            end(128 + number, _closing[-1] if _closing else self.last)
        self.came.append(number)
        signal.alarm(0)  # while it starts, Ray handles SIGTERM first, and orders an abort in 3 s
        _timers.append(threading.Timer(AGAIN_SECONDS, self._send, (number,)))
        _timers[-1].daemon = True
        _timers[-1].start()
        raise KeyboardInterrupt

    def _send(self, number: int) -> None:
        self._again = True
        os.kill(os.getpid(), number)


def _got_through() -> None:
    """An interrupt is not sent again."""
    while _timers:
        timer = _timers.pop()
        timer.cancel()
        timer.join()


@contextlib.contextmanager
def closing(last: str) -> Iterator[None]:
    """What an interrupt may not stop half-way: one that comes during it ends everything at once.

    One that led here is not sent again. Ray's core puts SIGTERM back to what the system does with it as it
    shuts down, behind Python's back; the handlers are set anew afterwards.
    """
    _closing.append(last)
    _got_through()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for kind in INTERRUPTS:
                signal.signal(kind, signal.getsignal(kind))
        _closing.pop()


@contextlib.contextmanager
def watching(watch: Callable[[threading.Event], None]) -> Iterator[None]:
    """Lets something watch in a thread of its own, while the context lasts.

    It has ended when the context has, unless it hangs: what it looks at may be gone afterwards.

    Args:
        watch: Called once, with an event that is set when it is to end.
    """
    over = threading.Event()
    thread = threading.Thread(target=watch, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10 * WATCH_SECONDS)


@contextlib.contextmanager
def guarded(last: str) -> Iterator[None]:
    """Watches the local Ray that this process has started.

    With a vital part dead, Ray would wait for up to minutes, end this process with lines of its own, and
    leave its other processes behind.

    Args:
        last: What is said, after which part died, when that ends the run.
    """

    import psutil

    def died(name: str) -> None:
        if _arrived and select.select(_arrived, [], [], INTERRUPT_SECONDS)[0]:
            end(128 + os.read(_arrived[0], 1)[0], f"interrupted; {last}")
        end(1, f"Ray's {name} died; {last}")

    def watch(over: threading.Event) -> None:
        vital: dict[int, str] = {}  # by a descriptor that is readable once the process is dead
        seen: set[int] = set()
        began = time.monotonic()
        while not over.is_set():
            _look()
            for process in list(_known.values()):  # one that died before it was seen alive
                with contextlib.suppress(psutil.Error):
                    ended = process.status() == psutil.STATUS_ZOMBIE and process.ppid() == os.getpid()
                    if ended and process.pid not in seen and process.name() in VITAL and not over.is_set():
                        died(process.name())
            for pid, process in _known.items():
                # Linux alone has such descriptors; elsewhere Ray has the last word
                with contextlib.suppress(psutil.Error, OSError, AttributeError, IndexError):
                    name = process.cmdline()[0].rpartition("/")[2].strip()
                    if name in VITAL and pid not in seen:
                        seen.add(pid)
                        vital[os.pidfd_open(pid)] = name
            pause = WATCH_SECONDS if time.monotonic() > began + START_SECONDS else WATCH_SECONDS / 5
            dead, _, _ = select.select(list(vital), [], [], pause)
            if dead and not over.is_set():
                died(vital[dead[0]].removeprefix("ray::"))
        for descriptor in vital:
            os.close(descriptor)

    with watching(watch):
        yield


def end(status: int, last: str) -> None:
    """Ends this process at once, and all that it has started, after one line."""
    warn(last)
    _leave(status)


def leave(status: int) -> NoReturn:
    """Ends this process and all that it has started, without what libraries do as the interpreter ends."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    _leave(status)


def _leave(status: int) -> NoReturn:
    import psutil

    with contextlib.suppress(psutil.Error):
        _look()
    for process in _known.values():
        with contextlib.suppress(psutil.Error):
            process.kill()  # which looks whether the pid is still the same process's
    os._exit(status)


def _look() -> None:
    """Remembers the processes below this one, which belong to nobody once their parent is dead."""
    import psutil

    _known.update((process.pid, process) for process in psutil.Process().children(recursive=True))
