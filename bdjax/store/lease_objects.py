"""How a lease is acquired, renewed, released and taken over as an object in a store.

Where the store replaces an object only if it is still the version that was read, all of it is exact: a lease is taken over by
one request that replaces the dead holder's by the new one's, and a heartbeat is such a request too, by whose failure a holder
learns that it lost its lease. Where the store cannot do that, of two processes that take over a lease at the same moment both may
believe for a while that they hold it, and a run says so at its start: both then make the same records, and write them atomically
under the same names.
"""

import contextlib
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from bdjax.errors import UserError
from bdjax.store import conditional, objects
from bdjax.store.conditional import Conditional
from bdjax.store.lease_files import Lease, decode, encode, read

if TYPE_CHECKING:
    from upath import UPath

RELEASED = b'{"released": true}'  # a lease that nobody holds, where the store cannot remove on a condition


class Held:
    """A lease of this process: the name of this one time that it was acquired, and the version of its object that we know."""

    def __init__(self, acquisition: str, version: str):
        self.acquisition, self.version = acquisition, version


class ByCondition:
    """Leases in a store that replaces objects on a condition."""

    def __init__(self, store: Conditional):
        self._store = store

    def acquire(self, path: "UPath", lease: Callable[[], Lease]) -> Held | None:
        """Create a lease, or return None where it exists already."""
        return self._write(path, lease(), None)

    def take_over(self, path: "UPath", content: bytes, lease: Callable[[], Lease]) -> tuple[bool, Held | None]:
        """Replace another process's lease if it still has this content; return whether it was, and ours."""
        try:
            version, found = self._store.read(path)
        except FileNotFoundError:
            return False, None
        held = self._write(path, lease(), version) if found == content else None
        return held is not None, held

    def _write(self, path: "UPath", lease: Lease, version: str | None) -> Held | None:
        acquisition = uuid.uuid4().hex[:12]
        written = self._store.write(path, encode(lease._replace(acquisition=acquisition)), version)
        return None if written is None else Held(acquisition, written)

    def renew(self, path: "UPath", held: Held, lease: Lease) -> bool:
        """Write the next heartbeat; return False where another process took the lease over, or removed it."""
        data = encode(lease._replace(acquisition=held.acquisition))

        def write() -> bool:
            version = self._store.write(path, data, held.version)
            held.version = version or held.version
            return version is not None

        return self._while_ours(path, held, write)

    def release(self, path: "UPath", held: Held) -> None:
        """Remove the lease, or mark it as released, unless it was taken over meanwhile."""

        def let_go() -> bool:
            if self._store.removes:
                return self._store.remove(path, held.version)
            return self._store.write(path, RELEASED, held.version) is not None

        with contextlib.suppress(UserError):  # others wait until it times out
            self._while_ours(path, held, let_go)

    def _while_ours(self, path: "UPath", held: Held, attempt: Callable[[], bool]) -> bool:
        """Make an attempt, and another one if the lease is ours in a version that we did not know; return whether it is ours.

        That happens where a heartbeat arrived and its answer did not.
        """
        for _ in range(2):
            if attempt():
                return True
            try:
                version, content = self._store.read(path)
            except FileNotFoundError:
                return False
            lease = decode(content)
            if lease is None or lease.acquisition != held.acquisition:
                return False
            held.version = version
        return True


class WithoutConditions:
    """Leases in any other store: created exclusively where it can do that; else they are looked at before they are written."""

    def __init__(self, exclusive: bool):
        self._exclusive = exclusive

    def acquire(self, path: "UPath", lease: Callable[[], Lease]) -> str | None:
        """Create a lease and return the name of this acquisition, or None where it exists already."""
        acquisition = uuid.uuid4().hex[:12]
        created = objects.create(path, encode(lease()._replace(acquisition=acquisition)), self._exclusive)
        return acquisition if created else None

    def take_over(self, path: "UPath", content: bytes, lease: Callable[[], Lease]) -> tuple[bool, str | None]:
        """Remove another process's lease if it still has this content, and acquire it; return whether it was, and as above."""
        found = read(path)
        if found is None or found[0] != content:
            return False, None
        objects.remove(path)
        return True, self.acquire(path, lease)

    def renew(self, path: "UPath", acquisition: str, lease: Lease) -> bool:
        """Write the next heartbeat, or return False where the lease was taken over meanwhile."""
        if not self._is_ours(path, acquisition):
            return False
        objects.put(path, encode(lease._replace(acquisition=acquisition)))
        return True

    def release(self, path: "UPath", acquisition: str) -> None:
        """Remove a lease, unless it was taken over meanwhile."""
        with contextlib.suppress(UserError):  # others wait until it times out
            if self._is_ours(path, acquisition):
                objects.remove(path)

    def _is_ours(self, path: "UPath", acquisition: str) -> bool:
        found = read(path)
        return found is not None and found[1] is not None and found[1].acquisition == acquisition


def in_store(folder: "UPath", say: Callable[[str], None]) -> ByCondition | WithoutConditions:
    """Return how leases below a folder are kept, after the store was tried out; what it cannot do is said in one line.

    Raises:
      UserError: the store cannot be reached, or refuses.
    """
    store = conditional.tried(folder)
    if isinstance(store, Conditional):
        return ByCondition(store)
    exclusive = objects.creates_exclusively(folder)
    if not exclusive:
        say(f"{folder.protocol}:// does not create objects exclusively: let one process alone work on {folder.parent}")
    else:
        say(
            f"{folder.protocol}:// does not replace objects on a condition ({store}): "
            "when a process is cut off, two others may take over its cell at once; they make the same records"
        )
    return WithoutConditions(exclusive)
