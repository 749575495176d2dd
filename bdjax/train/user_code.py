"""What a Python file of the user's own consists of: the file, the modules it imports that are not installed, the files it names.

Import statements are read, not run, so that an import inside a function counts before the function is called.
"""

import ast
import functools
import hashlib
import importlib.machinery
import json
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bdjax.data.source import file_sha256

# Never a file of the user's own, whatever lies beside it under that name: they are loaded already.
OURS = frozenset({"bdjax", "jax", "jaxlib", "flax", "optax", "chex", "numpy"})
LARGE = 1 << 20  # bytes of a file whose hash is kept as long as its size and time stay the same
LONGEST = 200  # characters of a text that may name a file


class Parts(NamedTuple):
    """What a file consists of, but for itself."""

    files: dict[Path, str]  # {path: its name in the hash, which no absolute path enters}
    modules: frozenset[str]  # first names of the absolute imports among them


class _Imported(NamedTuple):
    level: int  # dots of a relative import
    module: str
    names: tuple[str, ...]  # of `from module import names`


def parts(main: Path, folders: Sequence[Path] = (), seen: Mapping[Path, str] | None = None) -> Parts:
    """The modules that a file imports from beside it or from ``folders``, theirs in turn, and the files that any of them names.

    Args:
      main: the file.
      folders: where Python finds modules beside the file's own folder.
      seen: {path: name} of files that are known to belong to it.
    """
    home = main.parent
    files: dict[Path, str] = {path: _name(path, (home,), name) for path, name in (seen or {}).items()}
    modules: set[str] = set()
    todo, done = [main, *files], {main}
    while todo:
        path = todo.pop()
        if path.suffix != ".py" or not path.is_file():
            continue
        imported, texts = _read(path.read_bytes())
        named = [path.parent / text for text in texts]
        bases = tuple(dict.fromkeys((home, path.parent, *(there for there in named if _is(there, Path.is_dir)), *folders)))
        found = {there.resolve(): _name(there.resolve(), (home, *bases)) for there in named if _is(there, Path.is_file)}
        for one in imported:
            for base in [_above(path.parent, one.level)] if one.level else bases:
                for there in _resolved(base, one):
                    found.setdefault(there.resolve(), _name(there.resolve(), (home, *bases)))
                    if not one.level:
                        modules.add(one.module.partition(".")[0])
        for there, name in found.items():
            if there not in files and there != main:
                files[there] = name
                todo.append(there)
        done.add(path)
    return Parts(files, frozenset(modules))


def digest(main: Path, files: Mapping[Path, str]) -> str:
    """sha256 of a file, and of the names and contents of what it consists of; one that stands alone has that of its bytes."""
    own = _sha256(main)
    if not files:
        return own
    contents = [own, sorted([name, _sha256(path)] for path, name in files.items())]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def is_own(path: str | Path) -> bool:
    """Whether a file is the user's own: neither Python's, nor installed, nor of this package."""
    place = Path(path).resolve()
    if {"site-packages", "dist-packages"} & set(place.parts):
        return False
    return not any(place.is_relative_to(folder) for folder in _foreign())


@functools.cache
def _foreign() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return (*(Path(sysconfig.get_path(name)).resolve() for name in names), Path(__file__).resolve().parent)


def _name(path: Path, bases: Iterable[Path], otherwise: str | None = None) -> str:
    for base in bases:
        if path.is_relative_to(base.resolve()):
            return path.relative_to(base.resolve()).as_posix()
    return otherwise or path.name


def _above(folder: Path, level: int) -> Path:
    for _ in range(level - 1):
        folder = folder.parent
    return folder


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(path)
    except (OSError, ValueError):  # a text that no file can be called
        return False


def _resolved(base: Path, one: _Imported) -> Iterator[Path]:
    """The files below ``base`` that an import would run; none where its first name is not there."""
    steps = one.module.split(".") if one.module else []
    if not one.level and (steps[0] in OURS or steps[0] in sys.stdlib_module_names):
        return
    folder: Path | None = base
    for step in steps:
        if folder is None:
            return  # what follows a module is an attribute of it
        found, folder = _step(folder, step)
        yield from found
    if folder is None:
        return
    if "*" in one.names:
        yield from sorted(folder.glob("*.py")) if steps else ()
    for name in one.names:
        yield from _step(folder, name)[0] if name != "*" and (steps or one.level) else ()


def _step(folder: Path, name: str) -> tuple[list[Path], Path | None]:
    """The files of one name of an import, and the folder of the package if it is one."""
    package = folder / name
    if (package / "__init__.py").is_file():
        return [package / "__init__.py"], package
    for suffix in (*importlib.machinery.EXTENSION_SUFFIXES, ".py"):
        if (folder / f"{name}{suffix}").is_file():
            return [folder / f"{name}{suffix}"], None
    return [], package if package.is_dir() else None


@functools.lru_cache(maxsize=1024)
def _read(source: bytes) -> tuple[tuple[_Imported, ...], tuple[str, ...]]:
    """The imports of a module and the texts in it that may name files; nothing of one that is not Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return (), ()
    imported: list[_Imported] = []
    texts: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [_Imported(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append(_Imported(node.level, node.module or "", tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__") and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value.strip("."):
                name = first.value.lstrip(".")
                imported.append(_Imported(len(first.value) - len(name), name, ()))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value.lstrip("/")
            if 0 < len(text) <= LONGEST and text.isprintable() and text.strip("."):
                texts[text] = None
    return tuple(imported), tuple(texts)


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _sha256(path: Path) -> str:
    facts = path.stat()
    if facts.st_size < LARGE:
        return file_sha256(path)
    return _of_large(path, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _of_large(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)
