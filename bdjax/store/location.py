"""Where results lie: a folder of this machine, or below a URL in an object store (``gs://bucket/run``, ``s3://…``).

A folder is a :class:`pathlib.Path`; what a URL names is a ``UPath`` of universal-pathlib, which has the same operations (``/``,
``name``, ``parent``, ``with_suffix``). The functions here read both alike.
"""

import contextlib
import os
import re
import tempfile
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from bdjax.errors import UserError, first_line
from bdjax.store import objects

if TYPE_CHECKING:
    from upath import UPath

    Location: TypeAlias = Path | UPath
else:
    Location = Path  # a name for readers and type checkers; universal-pathlib need not be installed


def check_name(where: str) -> None:
    """Raise UserError for the name of a folder that is not UTF-8: the library that stores trained networks cannot write there."""
    try:
        where.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the name of the folder of results {where!r} is not UTF-8: trained networks cannot be stored there; choose another"
        ) from None


def locate(where: "str | os.PathLike[str] | Location") -> Location:
    """Return the place that a path or URL names; nothing is read or made there.

    Raises:
      UserError: a URL of a kind that is not known, or that needs a package which is not installed.
    """
    if not isinstance(where, str):
        return Path(where) if isinstance(where, os.PathLike) else where
    if not where:
        raise UserError("the name of the folder of results is empty; the folder you are in is '.'")
    check_name(where)
    kind = re.match(r"[A-Za-z][\w+.:-]*(?=://)", where)
    if kind is None:
        return Path(where)
    if kind[0].lower() in ("file", "local"):
        return _local(where)
    if ":" in kind[0]:  # fsspec's chains: caches, archives
        raise UserError(f"{where} is no place for results: other processes would not see what is written there")
    return _remote(kind[0], where)


def _local(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{url} names a folder of another machine, {parts.netloc}; one of this machine begins with file:///")
    return Path(urllib.request.url2pathname(parts.path))


def _remote(kind: str, url: str) -> Location:
    try:
        from upath import UPath
    except ImportError:
        raise UserError(f'{url} needs universal-pathlib; install it with: pip install "bdjax[remote]"') from None
    from fsspec.registry import known_implementations, registry

    if kind not in known_implementations and kind not in registry:
        raise UserError(f"{url}: {kind}:// is not known; known are gs://, s3://, az:// and whatever else fsspec reads")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that universal-pathlib knows nothing special of a store
            path = UPath(url)
            path.fs  # noqa: B018 - asks for the store's own package now
    except ImportError as error:
        package = known_implementations.get(kind, {}).get("class", "fsspec").partition(".")[0]
        needs = first_line(error) if package == "fsspec" else f"install it with: pip install {package}"
        raise UserError(f"{url} needs a package that is not installed; {needs}") from error
    except Exception as error:  # no credentials, say
        raise UserError(f"cannot reach {url}: {first_line(error)}") from error
    return path


def read_bytes(path: Location) -> bytes:
    """Return the content of a file.

    Raises:
      FileNotFoundError: it is not there.
      OSError: it cannot be read; of a store this is a :class:`UserError`, for nothing is known of the file then.
    """
    return path.read_bytes() if isinstance(path, Path) else objects.get(path)


def read_many(paths: Sequence[Location]) -> Iterator[bytes | OSError]:
    """Yield the contents of files of one place, in order, or the error of one that cannot be read.

    Raises:
      UserError: the store cannot be reached, or refuses.
    """
    yield from objects.get_many([path for path in paths if not isinstance(path, Path)])
    for path in paths:
        if isinstance(path, Path):
            try:
                yield path.read_bytes()
            except OSError as error:
                yield error


def write_bytes(path: Location, data: bytes) -> None:
    """Write a file in place; :func:`bdjax.store.atomic.replace_file` writes one that must be complete or absent."""
    if isinstance(path, Path):
        path.write_bytes(data)
    else:
        objects.put(path, data)


def move(path: Location, target: Location) -> None:
    """Move a file or folder within one place.

    Raises:
      FileNotFoundError: it is not there.
      OSError: it cannot be moved; of a store this is a :class:`UserError`.
    """
    if isinstance(path, Path) and isinstance(target, Path):
        os.replace(path, target)
    elif not isinstance(path, Path) and not isinstance(target, Path):
        objects.move(path, target)
    else:
        raise TypeError(f"{path} and {target} lie in different places")


def exists(path: Location) -> bool:
    """Return whether there is a file or folder."""
    return path.exists() if isinstance(path, Path) else objects.exists(path)


def is_folder(path: Location) -> bool:
    """Return whether there is a folder; in a store, whether anything lies below that name."""
    return path.is_dir() if isinstance(path, Path) else objects.exists(path)


def files(folder: Location, pattern: str) -> list[Location]:
    """Return the files below a folder that match a pattern, sorted; "*" stands for any name without "/"."""
    return sorted(folder.glob(pattern) if isinstance(folder, Path) else versions(folder, pattern))  # type: ignore[type-var]


def oldest_first(folder: Location, pattern: str) -> list[Location]:
    """Return the files below a folder that match, the oldest first; files of one moment by their names."""
    if isinstance(folder, Path):
        return sorted(folder.glob(pattern), key=lambda path: (path.stat().st_mtime, path.name))  # type: ignore[return-value]
    return sorted(files(folder, pattern), key=lambda path: (objects.modified(path), path.name))  # type: ignore[arg-type]


def versions(folder: Location, pattern: str) -> dict[Location, Any]:
    """Return the files that match, unsorted, each with a value that changes when the file is written again."""
    if isinstance(folder, Path):
        found: dict[Location, Any] = {}
        for path in folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # another process moved it just now
                found[path] = path.stat().st_mtime_ns
        return found
    depth = len(PurePosixPath(pattern).parts)
    matching = [
        (name, facts)
        for name, facts in objects.listing(folder).items()
        if len(PurePosixPath(name).parts) == depth and PurePosixPath(name).match(pattern)
    ]
    return {folder / name: repr(facts) for name, facts in matching}


@contextlib.contextmanager
def written(folder: Location) -> Iterator[Path]:
    """Yield a folder of this machine whose files lie in ``folder`` when the block ends; on a disk that folder, made if missing.

    Raises:
      UserError: the store cannot be reached, or refuses.
    """
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="bdjax-") as name:
        yield Path(name)
        objects.upload(Path(name), folder)
