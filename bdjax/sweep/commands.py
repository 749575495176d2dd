"""Two commands about a folder of results: parse, call, print."""

from pathlib import Path
from typing import Any

from bdjax.sweep.flags import hyper_text


def status(out: str, /, *, watch: bool = False) -> int:
    """Say how far the sweeps of a folder are, also while other processes work on them.

    Args:
      out: folder of the results.
      watch: keep showing it until everything is finished.
    """
    from bdjax.sweep.status import show

    show(Path(out), watch=watch)
    return 0


def reproduce(
    results: str,
    /,
    *,
    dataset: str | None = None,
    model: str | None = None,
    width: int | None = None,
    attack: str | None = None,
    defense: str | None = None,
    spc: int | None = None,
    hyper: str | None = None,
    seed: int | None = None,
    poison_ratio: float | None = None,
    profile: str | None = None,
    cell: str | None = None,
    tolerance: float = 0.01,
    retrain: bool = False,
    imported: str | None = None,
    data_dir: str | None = None,
) -> int:
    """Run one record of a folder again, from its stored settings: identical, within tolerance, or different and why.

    The flags from --dataset to --cell pick the record; they are needed only as far as the folder holds several. The exit code
    is 1 where it is different.

    Args:
      results: folder of a run.
      dataset: data set, or the path of a folder with it.
      model: network.
      width: channels of its first stage.
      attack: attack it was trained with.
      defense: the repair of this defense; default: the training.
      spc: clean samples per class the defender held.
      hyper: traced hyper-parameters of the repair as its record tells them, e.g. '{"lr":0.01}'.
      seed: of the member.
      poison_ratio: of the member.
      profile: corrected or reference.
      cell: hash of the cell, as the records tell it.
      tolerance: largest difference of ACC, ASR and RA that passes, a fraction.
      retrain: also train again the network that the defense repaired.
      imported: import folder the network came from.
      data_dir: folder of the data archives; default: the environment's BDJAX_DATA_DIR.
    """
    from bdjax.data import load, spec
    from bdjax.sweep import trained
    from bdjax.sweep.reproduce import again, lines

    wanted: dict[str, Any] = {"model": model, "width": width, "attack": attack, "defense": defense, "spc": spc, "seed": seed}
    wanted |= {"dataset": None if dataset is None else spec(dataset).name, "hyper": hyper_text(hyper), "ratio": poison_ratio}
    row = trained.record(results, {**wanted, "profile": profile, "cell": cell}, statuses=("ok", "infeasible", "non_finite"))
    images = load(dataset or row["dataset"], data_dir, train_images=row["train_images"], test_images=row["test_images"])
    found = again(Path(results), row, images, tolerance=tolerance, retrain=retrain, folder=imported)
    print("\n".join(lines(found)))
    return 1 if found.verdict == "different" else 0
