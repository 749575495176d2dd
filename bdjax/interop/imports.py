"""The two commands: checkpoints of other software to an import folder, and variables to a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bdjax.data.source import file_sha256
from bdjax.errors import UserError, choose
from bdjax.interop import inserts
from bdjax.interop.checkpoint import Checkpoint, Triggered, check_triggered
from bdjax.interop.recognition import Recognised, nearest, recognise
from bdjax.interop.state import Imported, cleaned, from_state, to_state
from bdjax.interop.torch import read, write
from bdjax.models import MODELS, by_name
from bdjax.store.files import refuse_existing
from bdjax.store.import_folder import File, Import, save
from bdjax.types import DataSpec, Model, Variables


def import_torch(
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    dataset: str | None = None,
    model: str | None = None,
    seeds: Sequence[int] = (0,),
    ratio: float | None = None,
    triggered: bool = True,
    overwrite: bool = False,
    key: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Import:
    """Turn PyTorch checkpoints into an import folder.

    Args:
      files: one file, which all seeds share, or one per seed; all of one network and data set.
      out: folder to write.
      dataset: name (or folder) of the data set; None: what the files say.
      model: name of the network; None: what the files say, or what the names of their tensors imply.
      seeds: of the members, >= 0; they decide a defense's clean rows and draws.
      ratio: poison ratio the networks were trained with, for the records, in [0, 1]; None: not known.
      triggered: import the stored triggered test images too, if there are any.
      overwrite: replace an import folder that exists.
      key: of the weights in the files, such as "netC" or "model.state_dict"; None: the one network that they hold.
      say: gets a line where one of several parts of a file is read, and where weights are rounded to float32.

    A second file of a plug or of bounds beside a checkpoint, which an export leaves, is read with it.

    Returns:
      What was written.

    Raises:
      UserError: a file that cannot be read or does not fit (see :func:`bdjax.interop.torch.read` and
        :func:`bdjax.interop.state.from_state`), files of different networks or with different images, or wrong arguments.
    """
    paths = [Path(f) for f in ([files] if isinstance(files, (str, Path)) else files)]
    if len(paths) not in (1, len(seeds)):
        raise UserError(f"{len(paths)} files and {len(seeds)} seeds; give one file, or one per seed")
    if len(set(seeds)) != len(seeds) or any(seed < 0 for seed in seeds):
        raise UserError(f"seeds must be different and not negative; given {list(seeds)}")
    if ratio is not None and not 0 <= ratio <= 1:
        raise UserError(f"the poison ratio lies in [0, 1]; given {ratio}")
    if Path(out).exists() and not overwrite:
        raise UserError(f"{out} exists already; choose another name or allow overwriting")
    read_files = [_import(path, dataset, model, triggered, key, say) for path in paths]
    first, _, name = read_files[0][:3]
    for path, (other, *_, other_name) in zip(paths, ((m, i, n) for m, i, n, _ in read_files), strict=True):
        if _facts(other, other_name) != _facts(first, name):
            raise UserError(f"{path} holds {_facts(other, other_name)}, {paths[0]} {_facts(first, name)}; import them apart")
    imported = Import(
        model=first.name,
        width=first.width,
        depth=first.depth,
        classes=first.spec.classes,
        image_shape=first.spec.image_shape,
        dataset=name,
        sources=tuple(File(str(path), file_sha256(path)) for path in paths),
        points=tuple((seed, ratio) for seed in seeds),
        variables=tuple(variables for _, (variables, _), _, _ in read_files),
        network=tuple(range(len(seeds))) if len(paths) > 1 else (0,) * len(seeds),
        kept=tuple(kept for _, (_, kept), _, _ in read_files),
        triggered=_shared(paths, [images for *_, images in read_files]),
    )
    save(out, imported, overwrite=overwrite)
    return imported


def export_torch(
    path: str | Path,
    model: Model,
    variables: Variables,
    *,
    kept: Mapping[str, np.ndarray] | None = None,
    kind: str | None = None,
    dataset: str | None = None,
    triggered: Triggered | None = None,
    overwrite: bool = False,
) -> None:
    """Write one member's variables as a PyTorch checkpoint, and a plug or bounds as a second file (:mod:`bdjax.interop.inserts`).

    Args:
      path: the file.
      model: the network.
      variables: {"params", "batch_stats"} of one member, float32; with "plug" and "plug_stats" or "bounds" where a defense left
        them.
      kept: of the import they descend from, so that what nobody changed comes out bit for bit.
      kind: see :func:`bdjax.interop.torch.write`; None: "safetensors" where the name ends so, "attack_result" where images are
        given, else "state_dict".
      dataset: name of the data set; None: the model's.
      triggered: triggered test images, for an "attack_result".
      overwrite: replace files that exist.

    Raises:
      UserError: the variables are not the network's, or the file cannot be written.
    """
    if kind is None:
        kind = "safetensors" if Path(path).suffix == ".safetensors" else "state_dict" if triggered is None else "attack_result"
    plain, inserted = inserts.parted(variables)
    state = to_state(model, plain, kept)
    refuse_existing(inserts.place(path), overwrite)
    write(path, model, state, kind=kind, dataset=dataset, triggered=triggered, overwrite=overwrite)
    inserts.write(path, inserted, overwrite=overwrite)


def model_of(imported: Import) -> Model:
    """Return the network of an import, for its data set.

    Raises:
      UserError: the data set or the network is not known here, or no longer the same.
    """
    from bdjax.data import spec

    facts = spec(imported.dataset)
    if (facts.classes, tuple(facts.image_shape)) != (imported.classes, tuple(imported.image_shape)):
        raise UserError(
            f"{imported.dataset} has {facts.classes} classes and images {list(facts.image_shape)}, "
            f"the import {imported.classes} and {list(imported.image_shape)}"
        )
    return by_name(imported.model, facts, width=imported.width, depth=imported.depth)


def _import(
    path: Path,
    dataset: str | None,
    model: str | None,
    triggered: bool,
    key: str | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[Model, Imported, str, Triggered | None]:
    checkpoint = read(path, triggered=triggered, key=key, model=model)
    if say is not None:
        _notes(path, checkpoint, say)
    try:
        facts, name = _data(checkpoint, dataset)
        state = cleaned(checkpoint.state)
        network = _network(checkpoint, model, recognise(state), facts, state)
        result = from_state(network, state)
        result = result._replace(variables=inserts.read(path, network, result.variables))
        if checkpoint.classes not in (None, facts.classes):
            raise UserError(f"it says num_classes {checkpoint.classes}, but its last layer has {facts.classes}")
        if checkpoint.triggered is not None:
            check_triggered(checkpoint.triggered, facts.image_shape, facts.classes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return network, result, name, checkpoint.triggered


def _notes(path: Path, checkpoint: Checkpoint, say: Callable[[str], None]) -> None:
    """Say what a user would not expect: which of several parts was read, and that numbers were rounded."""
    if checkpoint.others:
        part = checkpoint.key or "the tensors of the file itself"
        say(f"{path}: read {part}; the file also holds {', '.join(checkpoint.others[:8])}")
    rounded = sum(value.dtype == np.float64 for value in checkpoint.state.values())
    if rounded:
        say(f"{path}: {rounded} tensors of float64 are rounded to float32")


def _data(checkpoint: Checkpoint, dataset: str | None) -> tuple[DataSpec, str]:
    from bdjax.data import DATASETS, spec

    name = dataset or checkpoint.dataset
    if name is None:
        raise UserError("it does not say which data set it belongs to; name one (--dataset)")
    if checkpoint.dataset in DATASETS and name in DATASETS and name != checkpoint.dataset:
        raise UserError(f"it belongs to {checkpoint.dataset}, not to {name}")
    facts = spec(name)
    if checkpoint.image_shape not in (None, tuple(facts.image_shape)):
        raise UserError(f"its images are {list(checkpoint.image_shape or ())}, those of {name} {list(facts.image_shape)}")
    return facts, name


def _network(
    checkpoint: Checkpoint, model: str | None, found: Recognised | None, facts: DataSpec, state: Mapping[str, np.ndarray]
) -> Model:
    name = model or checkpoint.model or (found.model if found else None)
    if name is None:
        names = ", ".join(list(state)[:4])
        told_networks = f"those of no network of the table: {', '.join(MODELS)}"
        raise UserError(f"its tensors ({names}, …) are {told_networks}; {nearest(list(state))}")
    choose("model", name, MODELS)
    if found is None or found.model != name:
        return by_name(name, facts)  # does not fit: from_state says how
    return by_name(name, facts, width=found.width, depth=found.depth)


def _facts(model: Model, dataset: str) -> str:
    depth = "" if model.depth is None else f", depth {model.depth}"
    return f"a {model.name} of width {model.width}{depth} for {dataset}"


def _shared(paths: Sequence[Path], images: Sequence[Triggered | None]) -> Triggered | None:
    first = images[0]
    for path, other in zip(paths, images, strict=True):
        if (first is None) != (other is None) or (first and other and not _equal(first, other)):
            raise UserError(
                f"{paths[0]} and {path} do not hold the same triggered test images; import them apart, or without images"
            )
    return first


def _equal(a: Triggered, b: Triggered) -> bool:
    return a.rows == b.rows and all(np.array_equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
