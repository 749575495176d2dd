"""Ctrl-C and SIGTERM are answered within seconds, also while a compiled program of hours runs.

Python delivers a signal to its main thread between two of its own instructions, and a compiled program is one instruction. So a
thread of ours hears of the signal too, through the descriptor that Python's handler writes to. Where the main thread can be
interrupted it is, and leaves as from any error. Where it is not within :data:`ANSWER` seconds, or does not come to an end within
:data:`UNWIND`, the thread waits until the last finished segment of the running cell is written, gives the cells of this process
back and ends the process; where the signal comes twice it does not wait. What is stored is complete or absent at any moment, as
after ``kill -9``.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

ANSWER = 2.0  # seconds in which the main thread may begin to leave
UNWIND = 8.0  # seconds in which it must have left
SAVE = 5.0  # seconds for what is just being written of a running cell
GIVE_BACK = 1.5  # seconds for giving back what the process holds
_CALLBACKS = tuple(os.path.join("jax", "_src", name) for name in ("callback.py", "debugging.py"))


class Stop:
    """How a command ends that is interrupted.

    Args:
      line: what is printed then.
    """

    def __init__(self, line: str) -> None:
        self.line = line
        self.number: int | None = None  # of the signal
        self.watching = False
        self._raised = False
        self._leaving, self._ending = threading.Lock(), threading.Lock()

    @property
    def code(self) -> int:
        """The exit code of a process that this signal ended."""
        return 128 + (self.number or signal.SIGINT)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What the main thread does about a signal, as soon as it can."""
        self.number = self.number or number
        if self._raised or _in_callback(frame):  # an exception in a callback would be the program's: the watcher ends it
            return
        self._raised = True
        raise KeyboardInterrupt

    def watch(self, reader: socket.socket, numbers: set[int]) -> None:
        """Hear of signals beside the main thread; ends when the other end of ``reader`` is closed."""
        began: float | None = None
        leaving = False
        while True:
            left = None if began is None or leaving else began + (UNWIND if self._raised else ANSWER) - time.monotonic()
            if left is not None and left <= 0:
                threading.Thread(target=self.leave, daemon=True).start()
                leaving, left = True, None
            reader.settimeout(left)
            try:
                heard = reader.recv(1)
            except TimeoutError:
                continue
            if not heard:
                return
            if heard[0] not in numbers:
                continue
            if began is not None:  # the second one
                self._end()
            self.number, began = self.number or heard[0], time.monotonic()

    def leave(self) -> int:
        """Say so and end the process; where nobody watches, as in a library, only say so and give the exit code."""
        if not self.watching:
            print(self.line, file=sys.stderr)
            return self.code
        if not self._leaving.acquire(blocking=False):
            threading.Event().wait()  # the other thread is about to end the process
        _for(SAVE, _finish)
        return self._end()

    def _end(self) -> int:
        """Give back what others would wait for, say so and end the process."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()
        _for(GIVE_BACK, _give_back)
        shown = "\x1b[?25h\r\x1b[K" if sys.stderr.isatty() else ""  # the cursor, which a progress bar hides
        with contextlib.suppress(OSError):  # straight to the descriptor: the main thread may hold the stream
            os.write(2, f"{shown}{self.line}\n".encode())
        os._exit(self.code)


def _in_callback(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.endswith(_CALLBACKS):
            return True
        frame = frame.f_back
    return False


def _for(seconds: float, what: Callable[[], None]) -> None:
    """Do something, but wait for it only so long."""
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    thread.join(seconds)


def _finish() -> None:
    """Write what is just being written of running cells."""
    if "bdjax.store.running" in sys.modules:
        sys.modules["bdjax.store.running"].finish_all()


def _give_back() -> None:
    """What other processes would otherwise wait for, and what was printed."""
    if "bdjax.store.leases" in sys.modules:
        sys.modules["bdjax.store.leases"].release_all()
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.kill()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()


@contextlib.contextmanager
def answered(line: str, *, watched: bool) -> Iterator[Stop]:
    """Answer Ctrl-C and SIGTERM while the block runs.

    Args:
      line: printed when the command is stopped.
      watched: whether the process is this command's own. Elsewhere - in a notebook, a test, another thread - no handler is
        changed. Signals that the process ignores, or handles in its own way, stay as they are.
    """
    stop = Stop(line)
    mine = (signal.default_int_handler, signal.SIG_DFL)
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) in mine] if watched else []
    if not numbers or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, stop.handle) for number in numbers}
    hook, sys.unraisablehook = sys.unraisablehook, _unless_stopped(sys.unraisablehook)
    stop.watching = True
    threading.Thread(target=stop.watch, args=(reader, set(numbers)), name="bdjax-signals", daemon=True).start()
    try:
        yield stop
    finally:
        stop.watching = False
        sys.unraisablehook = hook
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            if signal.getsignal(number) == stop.handle:  # else a library has put its own in place
                signal.signal(number, handler)
        writer.close()


def _unless_stopped(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A signal that arrives while Python cleans an object up is no news for the user; the watcher goes on counting."""

    def quiet(raised: Any) -> None:
        if raised.exc_type is not KeyboardInterrupt:
            hook(raised)

    return quiet
