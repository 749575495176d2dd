"""The log of a run: ``out/logs/<time>-<token>.jsonl``, a file for each process that runs, a JSON object in each line.

On a disk a line is there as soon as something happens. An object of a store cannot be appended to: there all lines are uploaded
together, once a minute and at the end, and a long log goes on in a next object. A log that cannot be written ends no work: it is
said once, and the log goes on trying.
"""

import datetime
import itertools
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from bdjax.data.atomic import token
from bdjax.errors import UserError, first_line
from bdjax.store import objects, rows
from bdjax.store.location import Location

UPLOADED = 60.0  # seconds between two uploads
PART = 1 << 20  # bytes of an object, after which the log goes on in a next one

_NUMBER = itertools.count(1)


def new_name() -> str:
    """Return a name that no other log has, the earlier ones first in the order of names."""
    moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    number = next(_NUMBER)
    return f"{moment}-{token()}" + (f"-{number}" if number > 1 else "")


class RunLog:
    """A log file; it raises nothing.

    Args:
      out: folder of results.
      name: of the log, from :func:`new_name`.
      uploaded: seconds between two uploads, in a store.
    """

    def __init__(self, out: Location, name: str, uploaded: float = UPLOADED) -> None:
        self._folder, self._name, self._interval = out / "logs", name, uploaded
        self._lines = bytearray()  # on a disk those that are not written yet, in a store those of the object in the making
        self._part, self._complained, self._changed = 1, False, False
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        if not isinstance(out, Path):
            self._thread = threading.Thread(target=self._upload_often, name="bdjax-log", daemon=True)
            self._thread.start()

    def path(self) -> Location:
        """Where the lines go now."""
        return self._folder / (f"{self._name}.jsonl" if self._part == 1 else f"{self._name}.{self._part}.jsonl")

    def hear(self, event: str, facts: dict[str, Any]) -> None:
        """Add a line."""
        line = json.dumps({"time": rows.now(), "event": event, **facts}, ensure_ascii=False, default=str)
        with self._lock:
            self._lines += line.encode("utf-8", "replace") + b"\n"
            self._changed = True
            if self._thread is None:
                self._append()

    def close(self) -> None:
        """Upload what is not there yet."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._upload()

    def _append(self) -> None:
        """Write what is not written to the end of the file; of a line that did not fit the rest is written later."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(str(self.path()), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                while self._lines:
                    del self._lines[: os.write(handle, self._lines)]
            finally:
                os.close(handle)
        except OSError as error:
            self._complain(error)

    def _upload_often(self) -> None:
        while not self._stop.wait(self._interval):
            self._upload()

    def _upload(self) -> None:
        with self._lock:
            lines, changed, self._changed = bytes(self._lines), self._changed, False
        if not changed:
            return
        try:
            objects.put(self.path(), lines)  # type: ignore[arg-type]
        except UserError as error:
            with self._lock:
                self._changed = True
            self._complain(error)
            return
        if len(lines) >= PART:
            with self._lock:
                del self._lines[: len(lines)]
                self._part, self._changed = self._part + 1, bool(self._lines)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            why = getattr(error, "strerror", None) or first_line(error)
            print(f"bdjax: the log {self.path()} cannot be written: {why}; the run goes on", file=sys.stderr, flush=True)
