"""README's picture, which the quickstart draws: ``python -m docs.generators.quickstart bdjax-quickstart`` takes it from there."""

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

PICTURE = Path(__file__).parents[1] / "quickstart.png"
FIGURE = "figures/before-after-badnets.png"  # in the quickstart's folder
SEEN = 40  # difference of two grey levels, of 255, that is seen


def difference(folder: str | Path) -> float:
    """The share of the pixels in which README's picture and the quickstart's differ visibly; 1 where their sizes differ."""
    ours, drawn = (np.asarray(Image.open(path).convert("L"), np.int16) for path in (PICTURE, Path(folder, FIGURE)))
    return 1.0 if ours.shape != drawn.shape else float((np.abs(ours - drawn) > SEEN).mean())


if __name__ == "__main__":
    shutil.copyfile(Path(sys.argv[1], FIGURE), PICTURE)
