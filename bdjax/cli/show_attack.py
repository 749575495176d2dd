"""``bdjax show-attack``: what attacks do to images, as one sheet and as figures of image quality."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bdjax import data
from bdjax.attacks.table import ATTACKS
from bdjax.cli.flags import DataDir, LearningFlags, Profile, Scenario, flag
from bdjax.cli.scenario import grid_of
from bdjax.errors import UserError
from bdjax.population import Execution
from bdjax.reporting.attack_sheet import Shown, attack_sheet
from bdjax.results.learned import Learning, Named, Ready, Say, ready
from bdjax.results.quality import Summary, quality, summary
from bdjax.store.files import replacing
from bdjax.sweep import trace
from bdjax.sweep.build import asks_architecture
from bdjax.sweep.expand import cells, check
from bdjax.sweep.grid import Grid
from bdjax.train.experiment import apply_trigger_to_all
from bdjax.types import Attack, DataSpec

SHOWN = 6  # images on a sheet, unless the user says otherwise
MEASURED = 1000  # test images whose quality is measured, at most


class Figures(NamedTuple):
    """A line of the table."""

    name: str
    quality: Summary


class Sheet(NamedTuple):
    """What :func:`show` made."""

    path: Path  # of the picture
    rows: tuple[Figures, ...]


def show_attack(
    names: Annotated[tuple[str, ...], flag("[ATTACK ...]", "all that can attack the data set")],
    /,
    learning: LearningFlags,
    *,
    dataset: Annotated[str, flag("NAME")] = "digits",
    out: Annotated[str, flag("FILE")] = "triggers.png",
    images: Annotated[int | None, flag("INT", "6, or as many as there are classes besides the target")] = None,
    target: int = 0,
    seed: int = 0,
    root: int = 0,
    profile: Profile = "corrected",
    config: Annotated[tuple[str, ...], flag("ATTACK.FIELD=VALUE ...", "the attacks' own: bdjax ls attacks NAME")] = (),
    train_images: Annotated[int | None, flag("INT", "all images")] = None,
    data_dir: DataDir = None,
) -> int:
    """Draw what attacks do to images - originals, triggered images, ten times the change - and measure PSNR, SSIM and L∞.

    Args:
      names: attacks, see `bdjax ls attacks`, or path/to/file.py:factory.
      learning: of triggers that are learned with a network.
      dataset: data set, see `bdjax ls datasets`, or the path of a folder with one.
      out: picture to write (.png).
      images: number of images, each of another class.
      target: target class of the attacks.
      seed: of the member whose trigger is shown, where members have their own.
      root: root of all random draws.
      profile: of the attacks.
      config: static settings; ATTACK "recipe" is the training.
      train_images: size of a reduced training set, from which triggers are prepared.
      data_dir: folder of the data archives.
    """
    found = show(
        names, dataset, out=Path(out), images=images, target=target, seed=seed, root=root, profile=profile, config=config,
        train_images=train_images, data_dir=data_dir, learning=learning,
    )  # fmt: skip
    print(markdown(found.rows))
    print(f"picture in {found.path}")
    return 0


def show(
    names: Sequence[str],
    dataset: str,
    *,
    out: Path,
    images: int | None = None,
    target: int = 0,
    seed: int = 0,
    root: int = 0,
    profile: str = "corrected",
    config: Sequence[str] = (),
    train_images: int | None = None,
    data_dir: str | None = None,
    learning: Learning | None = None,
    execution: Execution | None = None,
    say: Say | None = None,
) -> Sheet:
    """Write the sheet of some attacks on one data set, and measure how much their triggers change test images.

    The images are of different classes, and of classes that every one of the attacks moves to another; the figures are of up to
    :data:`MEASURED` such test images, evenly spaced. An attack whose trigger differs while training gets a second row. A trigger
    that is learned comes from a folder of results, or is learned here.

    Args:
      names: see :func:`show_attack`.
      dataset: name, or path of a folder.
      out: file ending in .png.
      images: columns; None = 6, or as many as there are classes that every attack moves.
      target: class.
      seed: of a member.
      root: of all keys.
      profile: of the attacks.
      config: ATTACK.FIELD=VALUE items.
      train_images: of the reduced training set.
      data_dir: of the archives.
      learning: of triggers that are learned.
      execution: how a network is trained; None = the default of the platform.
      say: is called with a line about what is left out, prepared or trained; None = stderr.

    Raises:
      UserError: an unknown name or setting, an attack named that cannot attack the data set, more images than classes, settings
        of a training where nothing is trained, or no network in ``results`` that fits.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"the picture is a PNG: --out {out} must end in .png")
    learning = learning or Learning()
    say = say or (lambda line: print(f"bdjax: {line}", file=sys.stderr, flush=True))
    grid = _grid(dataset, learning, target=target, seed=seed, root=root, profile=profile, train_images=train_images)
    chosen = _chosen(names, grid, config, say)
    _all_used(learning, chosen, config)
    loaded = data.load(dataset, data_dir, train_images=train_images)
    shown, measured = _rows(np.asarray(loaded.test.labels), [one.attack for one in chosen], images, loaded.spec)
    pictures = np.asarray(loaded.test.images[measured])
    columns = np.searchsorted(measured, shown)
    lines: list[Figures] = []
    drawn: list[Shown] = []
    for one in chosen:
        trace.attack(one.cell, one.attack, loaded)
        attack = ready(one, loaded, learning, seed, grid.poison_ratio[0], execution, say)
        for title, triggered in _triggered(one.name.rpartition(":")[2], attack, pictures):
            lines.append(Figures(title, summary(quality(pictures, triggered))))
            drawn.append(Shown(title, triggered[columns], lines[-1].quality, attack.note))
    titles = loaded.spec.class_names or tuple(str(k) for k in range(loaded.spec.classes))
    figure = attack_sheet(pictures[columns], drawn, [titles[int(loaded.test.labels[row])] for row in shown])
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=figure.dpi, format="png")
    return Sheet(out, tuple(lines))


def _triggered(title: str, attack: Ready, pictures: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The pictures u8[n h w c] with the trigger, and with that of the training where it is another, each with its title."""
    forms = [(title, attack.attack)]
    if attack.attack.train_stamp is not None:
        forms.append((f"{title}, training", attack.attack._replace(stamp=attack.attack.train_stamp)))
    for name, form in forms:
        yield name, np.asarray(apply_trigger_to_all(form, attack.trigger.value, attack.trigger.key, pictures))


def markdown(rows: Sequence[Figures]) -> str:
    """The table of :func:`show`: mean PSNR over images that changed, mean SSIM, mean and largest L∞ in grey levels."""
    lines = ["| attack | PSNR, dB | SSIM | L∞, mean | L∞, max | images | unchanged |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name, found in rows:
        psnr = "–" if found.psnr is None else f"{found.psnr:.2f}"
        cells = (name, psnr, f"{found.ssim:.4f}", f"{found.linf:.1f}", found.linf_max, found.images, found.unchanged)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _grid(dataset: str, learning: Learning, *, seed: int, **fields: Any) -> Grid:
    ratio = 0.1 if learning.poison_ratio is None else learning.poison_ratio
    return Grid(
        dataset=(dataset,), model=(learning.model or "cnn",), defense=(), seeds=(seed,), poison_ratio=(ratio,),
        width=learning.width, epochs=learning.epochs, batch=learning.batch, **fields,
    )  # fmt: skip


def _chosen(names: Sequence[str], grid: Grid, config: Sequence[str], say: Say) -> list[Named]:
    """The attacks named; or, where none is, all of the table that accept the data set; ``say`` is called for the others."""
    every = dataclasses.replace(grid, attack=tuple(names) or tuple(ATTACKS))
    every = check(grid_of(Scenario(config=tuple(config)), every))
    found = []
    for name in every.attack:
        settings, recipe = ({k: v for k, v in of.items() if k == name} for of in (every.attack_config, every.attack_recipe))
        try:
            (branch,) = cells(dataclasses.replace(every, attack=(name,), attack_config=settings, attack_recipe=recipe))
        except UserError as error:
            if names or settings or recipe:
                raise
            say(f"{name} is left out: {error}")
            continue
        found.append(Named(name, branch.train, branch.attack))
    if not found:
        raise UserError(f"no attack can be shown on {grid.dataset[0]}")
    return found


def _all_used(learning: Learning, chosen: Sequence[Named], config: Sequence[str]) -> None:
    """Settings of a training are refused where nothing is trained."""
    settings = {f"--{field.name.replace('_', '-')}": getattr(learning, field.name) for field in dataclasses.fields(learning)}
    given = [flag for flag, value in settings.items() if value is not None]
    recipes = [item for item in config if item.startswith("recipe.") or ".recipe." in item.partition("=")[0]]
    learned = [one.name for one in chosen if one.attack.update is not None]
    if learned:
        fixed = {one.name for one in chosen} - {*learned}
        idle = [item for item in recipes if item.partition(".recipe.")[0] in fixed]
    else:
        adapts = any(asks_architecture(one.attack) for one in chosen)
        idle = [flag for flag in given if not (adapts and flag == "--model")] + recipes
    if idle:
        raise UserError(f"{', '.join(idle)}: no network is trained to show these attacks, so this has no meaning here")
    unread = [flag for flag in (*given, *recipes) if flag in ("--epochs", "--batch", *recipes)]
    if learning.results is not None and unread:
        raise UserError(f"{', '.join(unread)}: nothing is trained where --results names networks")


def _rows(labels: np.ndarray, attacks: Sequence[Attack], count: int | None, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the test set: those shown, of evenly spaced classes, and those measured, ascending, which include them."""
    moved = np.all([np.asarray(attack.relabel(jnp.asarray(labels, jnp.int32))) != labels for attack in attacks], axis=0)
    classes = np.unique(labels[moved])
    count = min(SHOWN, len(classes)) if count is None else count
    if not 1 <= count <= len(classes):
        raise UserError(
            f"images {count}: {spec.name} has {len(classes)} classes to show, besides the target; allowed: 1 … {len(classes)}"
        )
    wanted = classes[np.linspace(0, len(classes) - 1, count).round().astype(int)]
    shown = np.array([np.flatnonzero(moved & (labels == k))[0] for k in wanted])
    rest = np.setdiff1d(np.flatnonzero(moved), shown)
    more = min(len(rest), MEASURED - count)
    evenly = rest[(np.arange(more) * len(rest)) // max(more, 1)]
    return shown, np.union1d(shown, evenly)
