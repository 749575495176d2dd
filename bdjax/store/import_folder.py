"""The folder that an import makes: networks and test images as plain NumPy files, readable without PyTorch."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdjax import tree
from bdjax.data.source import file_sha256
from bdjax.errors import UserError
from bdjax.store.files import refuse_existing, replacing
from bdjax.store.hashing import json_digest
from bdjax.types import Triggered, Variables

_FORMAT, _VERSION, _MANIFEST = "bdjax-import", 1, "manifest.json"
_FACTS = ("model", "width", "depth", "classes", "image_shape", "dataset", "network")


class File(NamedTuple):
    """A file that was imported."""

    file: str  # as the user named it
    sha256: str


class Import(NamedTuple):
    """Networks that come from elsewhere and the members they are to be."""

    model: str  # name in the table
    width: int
    classes: int
    image_shape: tuple[int, int, int]
    dataset: str
    sources: tuple[File, ...]  # one per network
    points: tuple[tuple[int, float | None], ...]  # (seed, poison ratio or None where nobody knows it), one per member
    variables: tuple[Variables, ...]  # one per network, on the host
    network: tuple[int, ...]  # which network each member has
    kept: tuple[Mapping[str, np.ndarray], ...]  # per network, what an export puts back
    triggered: Triggered | None = None
    depth: int | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        """sha256 over the variables of each network."""
        return tuple(_sha256(tree.flatten(variables)) for variables in self.variables)

    @property
    def digest(self) -> str:
        """sha256 over what decides results: the network of every member and the images; no path or name of data enters."""
        each, pairs = self.digests, zip(self.points, self.network, strict=True)
        members = sorted([seed, -1.0 if ratio is None else ratio, each[n]] for (seed, ratio), n in pairs)
        images = None if self.triggered is None else _sha256(_arrays(self.triggered))
        facts = [self.model, self.width, self.depth, self.classes, self.image_shape]
        return json_digest([facts, members, images])


def save(path: str | Path, imported: Import, *, overwrite: bool = False) -> None:
    """Write an import folder, complete or not at all.

    Args:
      path: the folder.
      imported: what to write.
      overwrite: replace a folder that exists.

    Raises:
      UserError: the folder exists or cannot be written.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    if overwrite and path.exists() and not (path / _MANIFEST).is_file():
        raise UserError(f"{path} is not an import folder and is not replaced")
    parts: dict[str, Mapping[str, Any]] = {}
    for n, (variables, kept) in enumerate(zip(imported.variables, imported.kept, strict=True)):
        parts[f"network_{n}.npz"], parts[f"kept_{n}.npz"] = tree.flatten(variables), kept
    if imported.triggered is not None:
        parts["triggered.npz"] = _arrays(imported.triggered)
    with replacing(path) as temporary:
        temporary.mkdir()
        for name, arrays in parts.items():
            np.savez(temporary / name, **{key: np.asarray(value) for key, value in arrays.items()})  # type: ignore[arg-type]
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            **{fact: getattr(imported, fact) for fact in _FACTS},
            "sources": [source._asdict() for source in imported.sources],
            "points": imported.points,
            "files": {name: file_sha256(temporary / name) for name in parts},
        }
        manifest["checksum"] = json_digest(manifest)
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def load(path: str | Path, *, kept: bool = True) -> Import:
    """Read an import folder and check every byte of it.

    Args:
      path: the folder.
      kept: read what only an export needs (at full width and 32 pixels, ten times the rest of a VGG).

    Raises:
      UserError: no such folder, or a damaged one; names what is wrong.
    """
    path = Path(path)
    manifest = _manifest(path)
    wanted = {name: digest for name, digest in manifest["files"].items() if kept or not name.startswith("kept_")}
    parts = {name: _read(path, name, digest) for name, digest in wanted.items()}
    networks = range(len(manifest["sources"]))
    triggered = parts.get("triggered.npz")
    return Import(
        **{fact: manifest[fact] for fact in _FACTS if fact not in ("image_shape", "network")},
        image_shape=tuple(manifest["image_shape"]),
        network=tuple(manifest["network"]),
        sources=tuple(File(**source) for source in manifest["sources"]),
        points=tuple((seed, ratio) for seed, ratio in manifest["points"]),
        variables=tuple(_variables(parts[f"network_{n}.npz"]) for n in networks),
        kept=tuple(parts.get(f"kept_{n}.npz", {}) for n in networks),
        triggered=None if triggered is None else _triggered(triggered),
    )


def _variables(leaves: Mapping[str, Any]) -> dict[str, Any]:
    found = tree.unflatten(leaves)
    if "bounds" in found:  # by address, not by module
        found["bounds"] = tree.flatten(found["bounds"])
    return found


def _manifest(path: Path) -> dict[str, Any]:
    if not (path / _MANIFEST).is_file():
        raise UserError(
            f"{path} is no import folder (it has no {_MANIFEST}); make one with: bdjax import-torch FILE --out {path}"
        )
    try:
        manifest = dict(json.loads((path / _MANIFEST).read_text()))
        checksum = manifest.pop("checksum")
    except (ValueError, TypeError, KeyError):
        raise _damaged(path, f"{_MANIFEST} cannot be read") from None
    if manifest.get("format") != _FORMAT or manifest.get("version") != _VERSION:
        found = f"{manifest.get('format')} {manifest.get('version')}"
        raise UserError(f"{path} has format {found}; this bdjax reads {_FORMAT} {_VERSION}")
    if json_digest(manifest) != checksum:
        raise _damaged(path, f"{_MANIFEST} does not match its checksum")
    return manifest


def _read(path: Path, name: str, digest: str) -> dict[str, np.ndarray]:
    if not (path / name).is_file():
        raise _damaged(path, f"{name} is missing")
    if file_sha256(path / name) != digest:
        raise _damaged(path, f"{name} does not match its checksum")
    try:
        with np.load(path / name, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(path, f"{name} cannot be read ({error})") from None


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged: {reason}; import the checkpoint again")


def _arrays(triggered: Triggered) -> dict[str, Any]:
    return {name: np.asarray(value) for name, value in triggered._asdict().items()}


def _triggered(arrays: Mapping[str, np.ndarray]) -> Triggered:
    return Triggered(arrays["images"], arrays["labels"], arrays["attack_labels"], arrays["index"], int(arrays["rows"]))


def _sha256(arrays: Mapping[str, Any]) -> str:
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()
