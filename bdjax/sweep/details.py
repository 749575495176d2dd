"""One attack, defense, network or data set in full: what it does, its settings with their defaults, what it needs, its paper."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from bdjax.errors import UserError
from bdjax.plugins.load import factory
from bdjax.store.hashing import plain
from bdjax.sweep import misplaced
from bdjax.sweep.build import FIXED
from bdjax.sweep.comments import comments, paragraph, summary
from bdjax.types import PROFILES, Attack, DataSpec, Defense

COMMON = "cifar10"  # the data set whose values are shown; what is otherwise on others is told beside them
NETWORK = "cnn"
TITLES = {"attacks": "attack", "defenses": "defense", "models": "model", "datasets": "data set"}


def details(kind: str, name: str) -> dict[str, Any]:
    """What there is to know about one entry, as plain values.

    Settings, hyper-parameters and fields of the training are lists of {"name", "comment"} with the default in each profile, as
    they are on :data:`COMMON`; "elsewhere" has what is otherwise on other data sets, {data set: {profile: {name: value}}}.

    Args:
      kind: "attacks", "defenses", "models" or "datasets".
      name: of the table, or ``path/to/file.py:factory``; of a data set also the path of a folder.

    Raises:
      UserError: an unknown name, or a method that cannot be built.
    """
    misplaced.named("dataset" if kind == "datasets" else TITLES[kind], name)
    made = {"attacks": _attack, "defenses": _defense, "models": _model, "datasets": _dataset}[kind](name)
    return {"kind": TITLES[kind], "name": name, **made}


def _attack(name: str) -> dict[str, Any]:
    from bdjax.attacks.table import ATTACKS

    make = factory("attack", name, ATTACKS)
    built, missing = _by_profile(make, _spec(COMMON))
    one = next(iter(built.values()))
    needs = [f"a preparation once per {one.recipe.prepare_per}"] if one.prepare else []
    needs += ["a network that it learns its trigger with"] if one.update else []
    recipes = {profile: attack.recipe for profile, attack in built.items()}
    training = [row for row in _rows(recipes, make) if row["name"] not in FIXED]
    return {
        **_said(make),
        "poisons": "inside the batch" if one.batch else "the training set",
        "needs": needs,
        "settings": _rows(_configs(built), make),
        "training": training,
        "elsewhere": _elsewhere(make, lambda spec: spec, built),
        "missing": missing,
    }


def _defense(name: str) -> dict[str, Any]:
    from bdjax.defenses.table import DEFENSES

    make = factory("defense", name, DEFENSES)
    built, missing = _by_profile(make, _network(_spec(COMMON)))
    one = next(iter(built.values()))
    return {
        **_said(make),
        "needs": sorted(one.needs),
        "validation": one.validation,
        "settings": _rows(_configs(built), make),
        "hyper": _rows({profile: defense.hyper for profile, defense in built.items()}, make),
        "elsewhere": _elsewhere(make, _network, built),
        "missing": missing,
    }


def _model(name: str) -> dict[str, Any]:
    from bdjax.models import MODELS
    from bdjax.models.build import shapes

    make = factory("model", name, MODELS)
    model = make(_spec(COMMON))
    given = inspect.signature(make).parameters
    settings = [{"name": "width", "comment": "channels of the first stage", "default": model.width}]
    if "depth" in given:
        settings.append({"name": "depth", "comment": "at most so many blocks per stage", "default": None})
    return {
        **_said(make),
        "settings": settings,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes(model)["params"])),
        "convolutions": sum(kind == "conv" for kind, _ in model.arch.registered),
        "norms": len(model.arch.norms),
        "stages": list(model.arch.stages),
    }


def _dataset(name: str) -> dict[str, Any]:
    from bdjax.data import DATASETS

    facts, source = _spec(name), DATASETS.get(name)
    found = {
        "image": "x".join(map(str, facts.image_shape)),
        "classes": facts.classes,
        "class_names": list(facts.class_names),
        "mean": list(facts.mean),
        "std": list(facts.std),
        "flip": facts.flip,
        "pad": facts.pad,
    }
    if source is None:  # a folder of the user's own
        return found
    sizes = {f"{split}_images": sum(counts) for split, counts in source.counts.items()}
    editions = [{"name": one.name, "archives": sorted(one.archives), "download": bool(one.urls)} for one in source.editions]
    return {**found, **sizes, "editions": editions, "unpacked": [layout.needs for layout in source.layouts]}


def _said(make: Callable[..., Any]) -> dict[str, str]:
    return {"does": summary(make), "paper": paragraph(make, "Source"), "differs": paragraph(make, "Differs")}


def _spec(name: str) -> DataSpec:
    from bdjax.data import spec

    return spec(name)


def _network(spec: DataSpec) -> Any:
    from bdjax.models import by_name

    return by_name(NETWORK, spec)


def _by_profile(make: Callable[..., Any], subject: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """A method in every profile that it has, and why it has not the others."""
    built, missing = {}, {}
    for profile in PROFILES:
        try:
            built[profile] = make(subject, None, profile=profile)
        except UserError as error:
            missing[profile] = str(error)
    if not built:
        raise UserError(missing[PROFILES[0]])
    return built, missing


def _configs(built: Mapping[str, Attack | Defense]) -> dict[str, Any]:
    return {profile: method.config for profile, method in built.items()}


def _rows(values: Mapping[str, Any], make: Callable[..., Any]) -> list[dict[str, Any]]:
    """A row per field of NamedTuples that are given by profile; none for anything else."""
    one = next(iter(values.values()))
    if not hasattr(one, "_fields"):
        return []
    said = comments(type(one), make)
    return [
        {
            "name": name,
            "comment": said.get(name, ""),
            **{profile: plain(getattr(value, name)) for profile, value in values.items()},
        }
        for name in one._fields
    ]


def _elsewhere(
    make: Callable[..., Any], subject: Callable[[DataSpec], Any], built: Mapping[str, Attack | Defense]
) -> dict[str, dict[str, dict[str, Any]]]:
    """The defaults that are others on other data sets, {data set: {profile: {name: value}}}."""
    from bdjax.data import DATASETS

    found: dict[str, dict[str, dict[str, Any]]] = {}
    for dataset in DATASETS:
        for profile, method in built.items():
            with contextlib.suppress(UserError):  # it cannot run there, as its `run` says
                there, here = (_values(one) for one in (make(subject(_spec(dataset)), None, profile=profile), method))
                changed = {name: value for name, value in there.items() if value != here.get(name)}
                if changed:
                    found.setdefault(dataset, {})[profile] = changed
    return found


def _values(method: Attack | Defense) -> dict[str, Any]:
    """Settings, hyper-parameters and training of a method by name."""
    more, prefix = (method.recipe, "recipe.") if isinstance(method, Attack) else (method.hyper, "")
    config, rest = (plain(part) if hasattr(part, "_asdict") else {} for part in (method.config, more))
    return {**config, **{f"{prefix}{name}": value for name, value in rest.items()}}
