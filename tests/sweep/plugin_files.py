"""Files with methods of the user's own, right ones and wrong ones."""

HEAD = """import jax
import jax.numpy as jnp
import numpy as np
from typing import Any, NamedTuple
from bdjax.types import Attack, Defense, Recipe, Defended


class Hyper(NamedTuple):
    factor: Any = np.float32(2)


"""


def defense(*lines, needs="", result="Defended(view.variables)", name="mine"):
    """The text of a file with a defense whose repair consists of these lines."""
    body = "".join(f"        {line}\n" for line in (*lines, f"return {result}"))
    return (
        f'{HEAD}def {name}(model, config=None, *, profile="corrected"):\n    def defend(key, view, hyper):\n{body}\n'
        f"    return Defense(defend, Hyper(), frozenset({{{needs}}}), None)\n"
    )


def attack(name="mine", **hooks):
    """The text of a file with an attack that paints a corner; hooks are expressions that replace its own."""
    given = {
        "init": "lambda key, assets: {}",
        "select": "any_class",
        "stamp": "lambda trigger, key, images: images.at[:, -1, -1].set(1.0)",
        "relabel": "jnp.zeros_like",
        "recipe": "Recipe(epochs=1)",
        **hooks,
    }
    fields = ", ".join(f"{field}={expression}" for field, expression in given.items())
    return (
        f"{HEAD}from bdjax.attacks.selection import any_class\n\n\n"
        f'def {name}(spec, config=None, *, profile="corrected"):\n    return Attack({fields})\n'
    )
