"""Where a data set's archives lie, which edition they are, and whether they are complete."""

import functools
import hashlib
import os
from pathlib import Path

from bdjax.data.source import Edition, Source
from bdjax.errors import UserError

DATA_DIR = "BDJAX_DATA_DIR"


def downloads(source: Source, root: Path) -> Path:
    """Return the folder in the cache ``root`` that archives are fetched into where no data directory is given."""
    return root / "downloads" / source.folder


def target(source: Source, data_dir: str | os.PathLike[str] | None, root: Path) -> Path:
    """Return the folder that a data set's archives should lie in; it need not exist.

    Args:
      source: the data set.
      data_dir: the folder that holds ``source.folder``, or that folder itself; None: the environment's BDJAX_DATA_DIR, or else
        the cache.
      root: of the cache.
    """
    given = data_dir if data_dir is not None else os.environ.get(DATA_DIR)
    if not given:
        return downloads(source, root)
    home = Path(given).expanduser()
    nested = home / source.folder
    itself = home.name == source.folder or any((home / file).is_file() for e in source.editions for file in e.archives)
    return home if itself and not nested.is_dir() else nested


def complete(source: Source, folder: Path) -> list[Edition]:
    """Return the editions all of whose file names are there, in the order of ``source.editions``."""
    return [edition for edition in source.editions if all((folder / file).is_file() for file in edition.archives)]


def find(source: Source, data_dir: str | os.PathLike[str] | None, root: Path) -> Path | None:
    """Return the folder that holds all archives of some edition, or None.

    Args:
      source: the data set.
      data_dir: see :func:`target`; archives fetched into the cache earlier are found where it is None.
      root: of the cache.
    """
    folders = [target(source, data_dir, root)] + ([downloads(source, root)] if data_dir is None else [])
    return next((folder for folder in folders if complete(source, folder)), None)


def homes(source: Source, data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """Return the folders in which an unpacked copy may lie: the data set's in the data directory, and that itself."""
    given = data_dir if data_dir is not None else os.environ.get(DATA_DIR)
    home = Path(given).expanduser() if given else None
    return [folder for folder in (home / source.folder, home) if folder.exists()] if home is not None else []


def absent(source: Source, data_dir: str | os.PathLike[str] | None, root: Path) -> UserError:
    """Return the error for archives that :func:`find` does not find: what is missing, where, and what to do."""
    name = source.spec.name
    given = data_dir if data_dir is not None else os.environ.get(DATA_DIR)
    advice = f"run `bdjax data prepare {name} --data-dir DIR`, DIR being the folder that holds {source.folder}/"
    if not given:
        fetch = ", or add --download" if any(edition.urls for edition in source.editions) else ""
        return UserError(f"{name} is not prepared and no data directory is given: {advice} (or set {DATA_DIR}){fetch}.")
    home = Path(given).expanduser()
    if not home.is_dir():
        return UserError(f"the data directory {home} does not exist: {advice}.")
    folder = target(source, data_dir, root)
    folder = folder if folder.is_dir() else home
    missing = {edition.name: [file for file in edition.archives if not (folder / file).is_file()] for edition in source.editions}
    begun = [e.name for e in source.editions if len(missing[e.name]) < len(e.archives)] or list(missing)
    alike: dict[str, list[str]] = {}
    for edition in begun:
        alike.setdefault(", ".join(missing[edition]), []).append(edition)
    wanted = " or ".join(f"{files} (edition {' or '.join(editions)})" for files, editions in alike.items())
    there = sorted(file.name for file in folder.iterdir() if file.is_file())[:5]
    found = f" (found there: {', '.join(there)})" if there else ""
    layouts = "; or ".join(layout.needs for layout in source.layouts)
    return UserError(f"{name}: missing in {folder}: {wanted}{found}; put them there, or unpacked {layouts}; then {advice}.")


def edition_in(source: Source, folder: Path) -> Edition:
    """Return the edition of complete archives by the least reading: names where they suffice, else the smallest file's digest.

    Raises:
      UserError: that file's digest is none of the known ones.
    """
    candidates = complete(source, folder)
    for edition in candidates:
        shared = [file for file in edition.archives if any(file in other.archives for other in candidates if other != edition)]
        if not shared:
            return edition
        smallest = min(shared, key=lambda file: (folder / file).stat().st_size)
        path, expected, state = folder / smallest, edition.archives[smallest], (folder / smallest).stat()
        if _unchanged_digest(path, expected.partition(":")[0], state.st_size, state.st_mtime_ns) == expected:
            return edition
    raise _misfit(source, candidates[0], folder / smallest)


def check(source: Source, edition: Edition, folder: Path) -> None:
    """Compare every archive of an edition with its known digest.

    Raises:
      UserError: an archive is truncated, altered, renamed or of another edition.
    """
    for file, expected in edition.archives.items():
        if not _fits(folder / file, expected):
            raise _misfit(source, edition, folder / file)


def file_digest(path: Path, kind: str) -> str:
    """Return ``kind:hex`` of a file's bytes, ``kind`` being "sha256" or "md5"; raise :class:`UserError` if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return f"{kind}:{hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()}"
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error


@functools.lru_cache(maxsize=64)
def _unchanged_digest(path: Path, kind: str, size: int, changed: int) -> str:
    """Return the digest of a file, kept while size and time of change stay: a plan asks for the sizes of one data set often."""
    return file_digest(path, kind)


def _fits(path: Path, expected: str) -> bool:
    return file_digest(path, expected.partition(":")[0]) == expected


def _misfit(source: Source, edition: Edition, path: Path) -> UserError:
    """Say what a file is that is not what its name says."""
    expected = [(e, file, known) for e in source.editions for file, known in e.archives.items()]
    found = {kind: file_digest(path, kind) for kind in {known.partition(":")[0] for _, _, known in expected}}
    for other, file, known in expected:
        if found[known.partition(":")[0]] == known:
            if file != path.name:
                return UserError(f"{path} holds {file} of the edition {other.name!r}: it was renamed; give it its name back.")
            beside = f"the files beside it are of {edition.name!r}"
            return UserError(f"{path} is of the edition {other.name!r}, {beside}; keep one edition in a folder.")
    known_here = [(e.name, known) for e, file, known in expected if file == path.name]
    ours = next(known for name, known in known_here if name == edition.name)
    kind = ours.partition(":")[0]
    names = "; ".join(f"{name} {_short(known)}" for name, known in known_here)
    return UserError(
        f"{path} ({path.stat().st_size:,} bytes) is truncated or altered: its digest {_short(found[kind])} is that of no known "
        f"edition ({names}); fetch the file again."
    )


def _short(digest: str) -> str:
    kind, _, value = digest.partition(":")
    return f"{kind} {value[:12]}..."
