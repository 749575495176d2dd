"""Whether a cell can run: what is refused before any training, by `bdjax check` and by a run alike."""

from typing import Any

from bdjax.store.hashing import canonical
from bdjax.sweep import imported, trace
from bdjax.sweep.expand import Branch
from bdjax.train import assets
from bdjax.types import Dataset


class Ready:
    """Looks at the cells of a grid; what several of them share is looked at once."""

    def __init__(self) -> None:
        self._seen: set[tuple[Any, ...]] = set()

    def look(self, branch: Branch, dataset: Dataset) -> None:
        """Refuse a training cell and its defense cells that would fail or spoil a run.

        Args:
          branch: the cells.
          dataset: their data, as they are used.

        Raises:
          UserError: a method that cannot be traced or returns the wrong thing, a batch without room for the poison, a cache
            folder that cannot be written to, or an import folder whose images are not those of the data set.
        """
        train = branch.train
        trace.attack(train, branch.attack, dataset)
        if branch.attack.prepare is not None:
            assets.ready(assets.folder())
        if train.imported is not None and branch.attack.triggered is not None:
            imported.check_images(train.imported, dataset.spec)
        network = (train.dataset, train.model, train.width, train.depth, train.precision, train.profile, dataset.digest)
        for cell, defense in zip(branch.defenses, branch.built, strict=True):
            key = (*network, cell.defense, canonical(cell.config), cell.spc)
            if key not in self._seen:
                self._seen.add(key)
                trace.defense(cell, defense, branch.model, dataset)
