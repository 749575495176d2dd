"""What attacks prepare before a population runs (encoders, searched triggers, mask networks), kept on disk by content hash."""

import functools
import hashlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bdjax
from bdjax.data.cache import cache_root, try_writing, written_in
from bdjax.train import unfinished, user_code
from bdjax.train.asset_files import load, save
from bdjax.types import Attack, Dataset, Key

LAYOUT = 1  # of the files


def prepared(attack: Attack, dataset: Dataset, key: Key) -> Any:
    """The assets of an attack that prepares once per data set: from disk, or prepared now and kept; None if it prepares nothing.

    Args:
      attack: its ``prepare`` runs with the whole data set.
      dataset: host arrays.
      key: of the stream PREPARE.

    Raises:
      UserError: the preparation failed, or the cache folder cannot be written to.
    """
    if attack.prepare is None:
        return None
    assert attack.recipe.prepare_per == "dataset", "assets per seed are prepared as a population"
    path = place(attack, dataset, key)
    found = load(path)
    if found is None:
        ready(path.parent)
        print(f"bdjax: {_name(attack)} prepares its trigger for {dataset.spec.name}, once; it is kept in {path}", file=sys.stderr)
        with unfinished.beside(path):
            found = save(path, attack.prepare(key, dataset))
    return found


def place(attack: Attack, dataset: Dataset, key: Key) -> Path:
    """The file of the assets: named by the attack's configuration, edition and code, the data, the key and the version."""
    named_by = [
        LAYOUT,
        bdjax.__version__,
        _name(attack),
        getattr(_function(attack), "__qualname__", ""),
        repr(attack.config),
        _code(attack),
        dataset.digest,
        repr(dataset.spec),
        np.asarray(jax.random.key_data(key)).tolist(),
        *([attack.edition] if attack.edition != 1 else []),
    ]
    digest = hashlib.sha256(json.dumps(named_by).encode()).hexdigest()
    return folder() / f"{_name(attack)}-{digest[:24]}.npz"


def folder() -> Path:
    """The folder in which assets are kept."""
    return cache_root() / "assets"


def ready(folder: Path) -> None:
    """Check that assets can be kept in a folder, before the hours that it may take to prepare them.

    Raises:
      UserError: the cache folder cannot be written to.
    """
    with written_in(folder):
        try_writing(folder)


def _name(attack: Attack) -> str:
    """The module of the attack: its name, for built-in ones."""
    return attack.init.__module__.rpartition(".")[2]


def _code(attack: Attack) -> str:
    """sha256 of the code that prepares: all of ``bdjax/attacks`` for ours, else the user's file and all that it imports."""
    function = _function(attack)
    file = None if function is None else inspect.getsourcefile(function)
    ours = Path(bdjax.__file__).resolve().parent / "attacks"
    if file is not None and ours in Path(file).resolve().parents:
        files = sorted(ours.rglob("*.py"))
        beside = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        return beside if attack.source is None else f"{beside} {attack.source}"
    if attack.source is not None:
        return attack.source
    if file is None or not Path(file).is_file():  # typed in, as in a notebook
        return ""
    here = Path(file).resolve()
    return user_code.digest(here, user_code.parts(here).files)


def _function(attack: Attack) -> Any:
    """The function behind ``prepare``; None where it is an object of another kind."""
    function: Any = attack.prepare
    while True:
        inner = inspect.unwrap(function)
        while isinstance(inner, functools.partial):
            inner = inner.func
        if inner is function:
            return function if inspect.isfunction(function) else None
        function = inner
