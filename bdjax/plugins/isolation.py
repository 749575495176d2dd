"""Isolated imports: a file of the user's own finds the modules beside it, and not those of the same name beside another file.

Such modules are compiled from their source every time: Python recognises an outdated compiled file by its time and size alone,
and an edit may change neither.
"""

import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from bdjax.train import user_code

_LOCK = threading.RLock()
_ACTIVE: list["FileModules"] = []  # the last one was entered last


class Source(importlib.machinery.SourceFileLoader):
    """A loader that takes a module from its source, never from a compiled file."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the module."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py") and user_code.is_own(spec.origin):
            spec.loader = Source(name, spec.origin)
        return spec


class _Folder(str):
    """An entry of ``sys.path`` that is compared by identity, so that an equal one is not taken for it."""


class FileModules:
    """The modules of one file of the user's own: itself, and what it imports that is neither installed nor Python's.

    Args:
      path: of the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.name = f"bdjax_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
        self.paths: list[str] = []  # what it added to sys.path
        self.modules: dict[str, ModuleType] = {}
        self.parts = user_code.parts(path, self.folders())

    def folders(self) -> list[Path]:
        """Return where its modules may lie besides its own folder: folders of ``sys.path`` that are not of installed packages."""
        names = dict.fromkeys((*self.paths, *sys.path))
        return [Path(name).resolve() for name in names if Path(name).is_dir() and user_code.is_own(name)]

    def load(self) -> ModuleType:
        """Run the file as a module that is also the package of what lies beside it, so that relative imports work."""
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.partition(".")[0] == self.name]:
            del sys.modules[name]
        where = [str(self.path.parent)]
        spec = importlib.util.spec_from_file_location(
            self.name, self.path, loader=Source(self.name, str(self.path)), submodule_search_locations=where
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = module
        with self.active():
            spec.loader.exec_module(module)
        self.parts = self.inspect()
        return module

    def inspect(self) -> user_code.Parts:
        """Return what the file consists of now, by its text and by what it has imported."""
        seen = {path: f"{name.replace('.', '/')}{path.suffix}" for name, path in self._own() if path != self.path}
        return user_code.parts(self.path, self.folders(), seen)

    def unexpected(self) -> list[Path]:
        """Return files that it imported since :meth:`load` and that its text does not show."""
        return [path for _, path in self._own() if path not in self.parts.files and path != self.path]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the modules of this file the ones that imports find while the block runs."""
        with _LOCK:
            if _ACTIVE and _ACTIVE[-1] is self:
                yield
                return
            path, others, home = list(sys.path), self._hide(), _Folder(self.path.parent)
            sys.modules.update(self.modules)
            sys.path[:] = [*self.paths, *path, home]  # last: a module beside the file hides nothing that is installed
            before, finder = set(sys.modules), _Finder()
            sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
            _ACTIVE.append(self)
            try:
                yield
            finally:
                _ACTIVE.pop()
                sys.meta_path.remove(finder)  # type: ignore[arg-type]
                self.paths = [folder for folder in sys.path if folder is not home and folder not in path]
                sys.path[:] = path
                self._keep(set(sys.modules) - before)
                sys.modules.update(others)

    def _hide(self) -> dict[str, ModuleType]:
        """Take the modules of others that have the names of ours out of ``sys.modules``, and return them."""
        ours = {*self.parts.modules, *(name.partition(".")[0] for name in self.modules)} - {self.name}
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in ours}

    def _keep(self, new: set[str]) -> None:
        """Take our modules out of ``sys.modules``; those below the file's own name, which nobody else has, stay there."""
        for name in new:
            module = sys.modules[name]
            if name.partition(".")[0] != self.name and (name.partition(".")[0] in self.parts.modules or _file(module)):
                self.modules[name] = module
        for name in self.modules:
            sys.modules.pop(name, None)

    def _own(self) -> Iterator[tuple[str, Path]]:
        """Yield the names and files of the modules imported so far, in the order of the names."""
        below = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == self.name}
        for name, module in sorted({**self.modules, **below}.items()):
            path = _file(module)
            if path is not None:
                yield name.removeprefix(f"{self.name}."), path


def _file(module: Any) -> Path | None:
    """Return the file of a module that is the user's own; None for others."""
    name = getattr(module, "__file__", None)
    return Path(name).resolve() if isinstance(name, str) and user_code.is_own(name) else None
