"""``bdjax export-data``: what an attack makes of a data set, as files."""

from typing import Annotated, Literal

from bdjax.cli.flags import DataDir, Profile, Scenario, flag
from bdjax.cli.scenario import grid_of
from bdjax.errors import UserError, command
from bdjax.results.learned import Learning
from bdjax.sweep.build import asks_architecture
from bdjax.sweep.grid import Grid


def export_data(
    attack: Annotated[str, flag("ATTACK")],
    /,
    *,
    dataset: Annotated[str, flag("NAME")] = "digits",
    out: Annotated[str, flag("DIR")] = "bdjax-data",
    form: Literal["images", "arrays"] = "images",
    test_only: bool = False,
    poison_ratio: float = 0.1,
    seeds: int = 0,
    target: int = 0,
    root: int = 0,
    profile: Profile = "corrected",
    config: Annotated[tuple[str, ...], flag("ATTACK.FIELD=VALUE ...", "the attack's own: bdjax ls attacks NAME")] = (),
    train_images: Annotated[int | None, flag("INT", "all images")] = None,
    test_images: Annotated[int | None, flag("INT", "all images")] = None,
    results: Annotated[str | None, flag("DIR", "none, which suits every trigger that is not learned with a network")] = None,
    model: Annotated[str | None, flag("NAME", "that of --results, else cnn")] = None,
    width: Annotated[int | None, flag("INT", "whichever --results holds")] = None,
    data_dir: DataDir = None,
    overwrite: bool = False,
) -> int:
    """Write the poisoned training set and the triggered test set of an attack: PNG files with an index, or arrays.

    The poisoned rows are bit for bit those that a member of this seed and ratio is trained on. Attacks that poison inside the
    batch (wanet, bpp, input_aware) have no such set: --test-only writes their triggered test images. What is written can be
    trained on: bdjax run --dataset OUT --poison-ratio 0.

    Args:
      attack: see `bdjax ls attacks`, or path/to/file.py:factory.
      dataset: data set, see `bdjax ls datasets`, or the path of a folder with one.
      out: folder to write, with a manifest of configuration, versions and digests.
      form: images: train/, test/ and test_triggered/ with a folder per class, and index.csv; arrays: .npy files.
      test_only: write the triggered test images alone.
      poison_ratio: share of the training rows that is poisoned, 0 ... 1.
      seeds: of the member, one value: it decides which rows are poisoned, and its trigger where members have their own.
      target: target class of the attack.
      root: root of all random draws.
      profile: corrected or reference.
      config: static settings ATTACK.FIELD=VALUE.
      train_images: size of a reduced training set, as of `bdjax run`.
      test_images: size of a reduced test set, likewise.
      results: folder of a run, for an attack whose trigger is learned with a network (input_aware).
      model: network: that of the results, or the one that the trigger is made for (low_frequency).
      width: channels of the first stage of the results' network.
      data_dir: folder of the data archives.
      overwrite: replace an earlier export.
    """
    from bdjax.interop.export_data import branch_of
    from bdjax.interop.export_data import export_data as write

    grid = Grid(
        dataset=dataset, model=model or "cnn", attack=attack, defense=(), poison_ratio=poison_ratio, seeds=seeds, target=target,
        root=root, profile=profile, train_images=train_images, test_images=test_images,
    )  # fmt: skip
    grid = grid_of(Scenario(config=config), grid)
    if results is None and width is not None:
        raise UserError("--width is that of a network of --results: name the folder")
    if results is None and model is not None:
        built = branch_of(grid).attack
        if built.update is None and not asks_architecture(built):
            raise UserError(f"--model: the images of {attack} depend on no network, so this has no meaning here")
    learning = None if results is None else Learning(results, model, width, poison_ratio)
    made = write(grid, out, form=form, test_only=test_only, learning=learning, overwrite=overwrite, data_dir=data_dir)
    member = f"{dataset} / {attack}, ratio {poison_ratio:g}, seed {seeds}"
    if test_only:
        print(f"{member}: {made.triggered:,} triggered test images in {made.path}")
        return 0
    counts = f"{made.train:,} training images, {made.poisoned:,} of them poisoned, and {made.triggered:,} triggered test images"
    train = command("run", "--dataset", made.path, "--poison-ratio", 0)
    print(f"{member}: {counts} in {made.path}; train on them with: {train}")
    return 0
