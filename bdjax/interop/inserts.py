"""What a defense put into a network beside its weights - NPD's plug, MM-BD's bounds - as a second file beside a checkpoint.

A PyTorch state dict has no place for it. ``model.pt`` comes with ``model.pt.inserts.npz``, plain NumPy arrays by path, such as
``plug/kernel`` f32[1 1 d d] (of a 1x1 convolution, inputs before outputs) and ``bounds/layer1_0/bn1/act`` f32[d], to which the
activation of that name is cut. A bound below 0 acts as 0 (:func:`bdjax.nn.layers.tap`), and is written as 0, so that other code
which takes the minimum of activation and bound computes the same.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.errors import UserError
from bdjax.store.files import refuse_existing, replacing
from bdjax.types import Model, Variables

PARTS = ("bounds", "plug", "plug_stats")


def place(checkpoint: str | Path) -> Path:
    """Return the second file of a checkpoint."""
    path = Path(checkpoint)
    return path.with_name(f"{path.name}.inserts.npz")


def parted(variables: Variables) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what a state dict has a place for or refuses, what goes into the second file)."""
    inserts = {name: value for name, value in variables.items() if name in PARTS}
    return {name: value for name, value in variables.items() if name not in PARTS}, inserts


def write(checkpoint: str | Path, inserts: Mapping[str, Any], *, overwrite: bool) -> None:
    """Write the second file; where there is nothing to write, one that lies there is removed if it may be replaced.

    Raises:
      UserError: a file exists and may not be replaced, or cannot be written.
    """
    path = place(checkpoint)
    refuse_existing(path, overwrite)
    if not inserts:
        path.unlink(missing_ok=True)
        return
    if "bounds" in inserts:
        inserts = {**inserts, "bounds": {site: np.maximum(np.asarray(z), 0) for site, z in inserts["bounds"].items()}}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(leaf) for name, leaf in tree.flatten(inserts).items()})  # type: ignore[arg-type]
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def read(checkpoint: str | Path, model: Model, variables: Variables) -> dict[str, Any]:
    """Return the network with what its second file holds, if there is one.

    Raises:
      UserError: the file is damaged, or does not fit the network.
    """
    path = place(checkpoint)
    if not path.exists():
        return dict(variables)
    try:
        with np.load(path, allow_pickle=False) as archive:
            inserts: dict[str, Any] = {}
            for name in archive.files:  # the address of a bound has slashes of its own
                part, _, rest = name.partition("/")
                inserts.setdefault(part, {})[rest] = archive[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error})") from error
    strange = sorted(set(inserts) - set(PARTS)) + sorted(set(inserts.get("bounds", {})) - set(model.arch.activations))
    if strange or ("plug" in inserts) != ("plug_stats" in inserts):
        raise UserError(f"{path} does not fit {model.name}: {', '.join(strange[:4]) or 'a plug comes with its statistics'}")
    found = {**variables, **inserts}
    images = jax.ShapeDtypeStruct((1, *model.spec.image_shape), jnp.float32)
    try:
        jax.eval_shape(lambda v, x: model.apply(v, x).logits, found, images)
    except (TypeError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} does not fit {model.name} of width {model.width}: {reason}") from error
    return found
