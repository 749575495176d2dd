"""The two commands of the door to PyTorch: parse, call, print."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bdjax.cli.flags import Picked
from bdjax.errors import UserError


def import_torch(
    files: tuple[str, ...],
    /,
    *,
    poison_ratio: float,
    out: str = "bdjax-import",
    dataset: str | None = None,
    model: str | None = None,
    seeds: tuple[int, ...] = (0,),
    images: bool = True,
    overwrite: bool = False,
    key: str | None = None,
) -> int:
    """Bring PyTorch checkpoints in, to be defended and measured like networks trained here.

    Reads BackdoorBench's attack_result.pt and defense_result.pt, state dicts and training checkpoints that hold one (.pt, .pth,
    .ckpt, pickles) and .safetensors; nothing in a file is executed. Then: bdjax run --imported OUT --defense ... --spc ...

    Args:
      files: one file for all seeds, or one per seed.
      poison_ratio: share of the training rows that was poisoned, 0 ... 1, for the records.
      out: folder to write.
      dataset: data set, or the path of a folder with one; default: what the files say.
      model: network; default: what the files say, or what the names of their tensors show.
      seeds: of the members: they decide a defense's clean rows and draws.
      images: bring the stored triggered test images too, if there are any.
      overwrite: replace an import folder that exists.
      key: of the weights where a file holds several networks, e.g. netC or model.state_dict.
    """
    from bdjax.interop.imports import import_torch as bring

    found = bring(
        files, out, dataset=dataset, model=model, seeds=seeds, ratio=poison_ratio, triggered=images, overwrite=overwrite,
        key=key, say=print,
    )  # fmt: skip
    depth = "" if found.depth is None else f", depth {found.depth}"
    count = len(found.variables)
    text = f"{count} network{'s' if count > 1 else ''} {found.model} (width {found.width}{depth}, {found.classes} classes)"
    held = (
        "no triggered images: name our attack with --attack"
        if found.triggered is None
        else (f"{len(found.triggered.images):,} triggered test images")
    )
    print(f"{text}, {held}, in {out}; defend with: bdjax run --imported {out} --defense ft fp clp")
    return 0


def export_torch(
    results: str,
    file: str,
    /,
    picked: Picked,
    *,
    kind: Literal["attack_result", "defense_result", "state_dict", "safetensors"] | None = None,
    imported: str | None = None,
    data_dir: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write one trained or defended network of a folder of results as a PyTorch checkpoint.

    An attack_result holds the triggered test images as BackdoorBench does, as PNG files beside it.

    Args:
      results: folder of a run.
      file: file to write.
      picked: the network, by its record.
      kind: default: safetensors if the name ends so, else defense_result for a defended network, else attack_result.
      imported: import folder the network came from; what nobody changed then comes out bit for bit.
      data_dir: folder of the data archives; default: the environment's BDJAX_DATA_DIR.
      overwrite: replace files that exist.
    """
    from bdjax.interop.imports import export_torch as write
    from bdjax.results import member, recreate
    from bdjax.store.files import refuse_existing

    refuse_existing(Path(file), overwrite)  # before a defense that may take hours
    found = member.find(results, picked.facts())
    row, network = found.row, member.network(found, picked.dataset)
    if kind is None:
        result: Literal["attack_result", "defense_result"] = "attack_result" if row["defense"] == "none" else "defense_result"
        kind = "safetensors" if Path(file).suffix == ".safetensors" else result
    variables, triggered, rates = found.variables, None, ""
    kept = None if imported is None else _kept(imported, row)
    if kind == "attack_result" or row["defense"] != "none":
        images = recreate.images_of(row, picked.dataset, data_dir)
        if row["defense"] != "none":
            variables, again = recreate.defend(found, network, images, imported)
            rates = "; " + ", ".join(f"{name.upper()} {_fraction(again[name])}" for name in ("acc", "asr"))
            rates += f" (its record: {_fraction(row['acc'])}, {_fraction(row['asr'])})"
        if kind == "attack_result":
            triggered = recreate.triggered(found, images, imported)
    write(file, network, variables, kept=kept, kind=kind, dataset=row["dataset"], triggered=triggered, overwrite=overwrite)
    about = ", ".join(f"{name} {row[name]}" for name in ("dataset", "model", "attack", "defense", "seed", "ratio"))
    print(f"{file}: {kind} of {about}{rates}")
    return 0


def _kept(folder: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an import kept of the file behind a record, for its export."""
    from bdjax.store.import_folder import load

    source = load(folder)
    if json.loads(row["config"]).get("imported") != source.digest:
        raise UserError(f"{folder} is not what this network was imported from")
    return source.kept[source.network[source.points.index((row["seed"], row["ratio"]))]]


def _fraction(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
