"""What a user's own factory makes: checked at once, and with functions that find the imports of their file."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bdjax.errors import PluginError, UserError
from bdjax.plugins.running import Loaded, place, within, wrapped
from bdjax.plugins.usable import HOOKS, described, problem_of
from bdjax.types import Attack, Defense, Model

Factory = Callable[..., Any]


class Kind(NamedTuple):
    """What a factory makes, and how it begins."""

    type: Any
    called: str  # with what
    form: str
    returns: str


KINDS: Mapping[str, Kind] = {
    "attack": Kind(
        Attack, "spec, config and profile", 'def {}(spec, config=None, *, profile="corrected")', "bdjax.types.Attack(...)"
    ),
    "defense": Kind(
        Defense, "model, config and profile", 'def {}(model, config=None, *, profile="corrected")', "bdjax.types.Defense(...)"
    ),
    "model": Kind(Model, "spec, width and static fields", "def {}(spec, width=16, **how)", "bdjax.models.build.build(...)"),
}


def checked(kind: str, name: str, found: Factory, loaded: Loaded) -> Factory:
    """Wrap a user's factory so that its mistakes raise :class:`PluginError` with one line.

    Args:
      kind: of :data:`KINDS`.
      name: ``path/to/file.py:factory``, as it was given.
      found: the factory.
      loaded: its file.
    """
    attribute, here = name.rpartition(":")[2], place(found) or str(loaded.modules.path)

    @functools.wraps(found)
    def make(*arguments: Any, **named: Any) -> Any:
        _callable(kind, attribute, here, found, arguments, named)
        try:
            with within(loaded, attribute, here):
                built = found(*arguments, **named)
        except PluginError:
            raise
        except UserError as error:
            if KINDS[kind].type is Model:  # it has no configuration that a user could have got wrong
                raise PluginError(here, str(error)) from error
            raise
        made = _finished(kind, name, here, built, loaded)
        if KINDS[kind].type is not Model:  # a network's fields are not a configuration
            _keeps(attribute, here, made.config, named.get("config", arguments[1] if len(arguments) > 1 else None))
        return made

    return make


def _callable(kind: str, attribute: str, here: str, found: Factory, arguments: Any, named: Any) -> None:
    """Refuse a factory that cannot be called as it is going to be."""
    try:
        inspect.signature(found).bind(*arguments, **named)
    except TypeError as error:
        called, form = KINDS[kind].called, KINDS[kind].form.format(attribute)
        raise PluginError(here, f"{attribute} is called with {called}: {error}; write {form}") from error
    except ValueError:  # its signature is not known
        return
    if KINDS[kind].type is Model:
        from bdjax.models.factories import problem_of as problem_of_factory  # networks, which other files need not import

        if problem := problem_of_factory(found):
            raise PluginError(here, problem)


def _keeps(attribute: str, here: str, returned: Any, given: Any) -> None:
    """Refuse a method that was given a setting which the configuration it returns, and that records hold, lacks."""
    held = returned._asdict() if hasattr(returned, "_asdict") else returned if isinstance(returned, Mapping) else {}
    lost = next((field for field in given if field not in held), None) if isinstance(given, Mapping) else None
    if lost is not None:
        raise PluginError(
            here,
            f"{attribute} is given {lost!r}, and the configuration that it returns has no such field: records of different "
            "values would pass for the same experiment; return a configuration with it, (..., config=...)",
        )


def _finished(kind: str, name: str, here: str, built: Any, loaded: Loaded) -> Any:
    """Return what a factory made, with functions that find the imports of their file, if it can be used."""
    attribute, wanted = name.rpartition(":")[2], KINDS[kind].type
    if not isinstance(built, wanted):
        other = next((flag for flag, one in KINDS.items() if isinstance(built, one.type)), None)
        hint = f"; name it with --{other}" if other else f"; it has to return {KINDS[kind].returns}"
        raise PluginError(here, f"{attribute} is no {kind}: it returns {described(built)}{hint}")
    problem = problem_of(built)
    if problem:
        raise PluginError(here, f"{attribute} cannot be used: {problem}")
    if isinstance(built, Model):
        return _network(name, here, built, loaded)
    hooks: dict[str, Any] = {
        hook: wrapped(function, loaded, attribute) for hook in HOOKS if callable(function := getattr(built, hook, None))
    }
    if isinstance(built, Attack):
        return built._replace(**hooks, source=loaded.digest)
    curve = built.curve._replace(at=wrapped(built.curve.at, loaded, attribute)) if built.curve is not None else None
    return built._replace(**hooks, curve=curve)


def _network(name: str, here: str, built: Model, loaded: Loaded) -> Model:
    """Return a user's own network under the name it was given; built again, it stays that."""
    if (name, built) in loaded.networks:
        return loaded.networks[name, built]
    attribute = name.rpartition(":")[2]
    init, apply, again = (wrapped(function, loaded, attribute, here) for function in (built.init, built.apply, built.rebuild))
    if hasattr(built.init, "shapes"):  # a Drawer knows them without drawing
        init.shapes = wrapped(built.init.shapes, loaded, attribute, here)  # type: ignore[attr-defined]

    def rebuild(**fields: Any) -> Model:
        return _finished("model", name, here, again(**fields), loaded)

    own = built._replace(init=init, apply=apply, rebuild=rebuild, name=name, source=loaded.digest)
    loaded.networks[name, built] = own
    return own
