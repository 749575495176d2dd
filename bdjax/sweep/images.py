"""How many images a defense sees while it tunes a network."""

from bdjax.data.clean_subset import rows_per_class
from bdjax.sweep.cell import DefenseCell
from bdjax.types import Defense


def tuning_images(cell: DefenseCell, defense: Defense, classes: int) -> int | None:
    """Images that one member's tuning epochs see; None where the configuration names no epochs, or no clean data are used."""
    epochs = getattr(defense.config, "epochs", None)
    if not isinstance(epochs, int) or cell.spc is None:
        return None
    return epochs * rows_per_class(cell.spc, defense.validation)[0] * classes
