"""A few numbers of what every method computes, stored by method and edition: results that change raise the edition.

``check`` is called by the contract tests with what they computed anyway; ``python -m tests.golden.make`` stores new numbers.
"""

import json
import math
import os
from pathlib import Path

import jax
import numpy as np

STORED = Path(__file__).with_name("numbers.json")
NOTED = "BDJAX_GOLDEN"  # environment: a file that gets what is found, instead of being compared
RELATIVE = 1e-3  # what rounding, another version of jax or another CPU may change
ROUGH, ROUGHLY = "~", 0.3  # mark of a part that is the end of a long optimisation, where rounding errors grow; what may differ
TURN = (math.sqrt(5) - 1) / 2


def numbers(tree):
    """[root mean square, spread, projection] of the floating leaves of a tree, one after the other; None where there is none.

    What is not finite counts as 0. The spread is the root mean square about the mean; the projection, of what is about the mean,
    is on a cosine whose phase never repeats, so that the sign and the place of every entry matter.
    """
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree) if np.asarray(leaf).dtype.kind == "f"]
    flat = np.concatenate(leaves) if leaves else np.zeros(0)
    if not flat.size:
        return None
    flat = np.where(np.isfinite(flat), flat, 0)
    about = flat - np.mean(flat)
    wave = np.cos(2 * np.pi * ((np.arange(flat.size) * TURN) % 1))
    return [float(np.sqrt(np.mean(flat**2))), float(np.std(flat)), float(about @ wave * math.sqrt(2 / flat.size))]


def stored():
    """{name: {"edition": edition, "numbers": {part: [root mean square, spread, projection]}}}."""
    return json.loads(STORED.read_text())


def close(found, kept):
    """Whether two lots of numbers agree; a projection is held to a share of the spread, for it may be near 0.

    ``effect``, a difference of two networks that are nearly the same, may differ by ten times as much. Of what is marked by
    :data:`ROUGH` only the root mean square counts, and roughly.
    """

    def near(part, size, spread, along):
        if part.endswith(ROUGH):
            return abs(found[part][0] - size) <= ROUGHLY * size
        share = RELATIVE * (10 if part == "effect" else 1)
        bounds = (share * size + 1e-6, share * spread + 1e-6 * (1 + size), 2 * share * spread + 2e-6 * (1 + size))
        return all(abs(a - b) <= bound for a, b, bound in zip(found[part], (size, spread, along), bounds, strict=True))

    return set(found) == set(kept) and all(near(part, *three) for part, three in kept.items())


def check(name, edition, rough=None, **parts):
    """Compare what a method computed with what is stored of its edition.

    Args:
      name: of the method, with its kind and profile: "attack/wanet-corrected".
      edition: of the method.
      rough: trees of arrays that rounding errors change, by name.
      parts: trees of arrays, by name.
    """
    every = parts | {part + ROUGH: tree for part, tree in (rough or {}).items()}
    found = {part: three for part, tree in every.items() if (three := numbers(tree)) is not None}
    if NOTED in os.environ:
        with open(os.environ[NOTED], "a") as file:
            file.write(json.dumps({"name": name, "edition": edition, "numbers": found}) + "\n")
        return
    kept = stored().get(name)
    again = f"python -m tests.golden.make {name}"
    assert kept is not None, f"nothing is stored of {name}; store it with: {again}"
    assert kept["edition"] == edition, (
        f"the numbers stored of {name} are those of edition {kept['edition']}, and it says {edition}; store them with: {again}"
    )
    assert close(found, kept["numbers"]), (
        f"the results of {name} changed: {found}, stored {kept['numbers']}. If that is meant, raise the edition of the method, "
        f"so that old records are made again, and run: {again}"
    )


def merged(kept, noted, unpublished=()):
    """What is to be stored, and what is refused: names whose numbers changed while their edition did not rise.

    Args:
      kept: what is stored.
      noted: entries of :func:`check`.
      unpublished: names whose edition nobody has used yet, so that its numbers may still change.

    Returns:
      The new content and the refused names.
    """
    after, refused = dict(kept), []
    for entry in noted:
        name, old = entry["name"], kept.get(entry["name"])
        new = {
            "edition": entry["edition"],
            "numbers": {part: [_short(x) for x in three] for part, three in entry["numbers"].items()},
        }
        if old is None or new["edition"] > old["edition"] or (name in unpublished and new["edition"] == old["edition"]):
            after[name] = new
        elif new["edition"] < old["edition"] or not close(new["numbers"], old["numbers"]):
            refused.append(name)
    return {name: after[name] for name in sorted(after)}, refused


def _short(number):
    return float(f"{number:.6g}")


def write(content):
    """Store numbers, an entry per line."""
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in content.items()]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
