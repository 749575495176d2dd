"""Mistakes in a command line that are seen before it is parsed: unknown words, flags given twice, a file in another place."""

import collections
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_origin, get_type_hints

from bdjax.cli import values
from bdjax.errors import UserError, choose, command, nearest
from bdjax.types import Recipe

Commands = Mapping[str, Callable[..., int]]
OF_A_FILE = ("sweep", "plan", "check")  # commands that take the file of a grid
COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")
SHELLS = ("bash", "zsh")
OWN = ("--attack", "--defense", "--model")  # flags whose values may be files, with a factory behind a colon
FLAGGED = ("epochs", "batch")  # fields of a recipe that have flags


def look(arguments: Sequence[str], commands: Commands) -> None:
    """Say in one line what is wrong with a command line, if that can be seen without parsing it.

    Args:
      arguments: all words after ``bdjax``.
      commands: by name.

    Raises:
      UserError: an unknown command or flag, a flag that is given twice, or the file of a grid behind a flag.
    """
    if arguments and arguments[0] in COMPLETION:
        choose("shell", arguments[1] if len(arguments) > 1 else "", SHELLS)
    if not arguments or arguments[0].startswith("-"):
        return
    name, words = arguments[0].replace("_", "-"), list(arguments[1:])
    choose("command", name, commands)
    words = words[: words.index("--")] if "--" in words else words
    known = {**flags(commands[name]), "--help": bool}
    if name == "run" and words and words[0].endswith(".py"):
        raise UserError(f"run takes no file, sweep does: {command('sweep', *words)}")
    if name in OF_A_FILE:
        _file_flag(name, words)
        _file_behind(name, words, known)
    given = [_flag(word) for word in words if word.startswith("--")]
    for flag in given:
        if flag not in known:
            raise _unknown(flag, name, commands)
    _once_each(given)
    values.look(words, known)


def flags(function: Callable[..., Any]) -> dict[str, Any]:
    """The flags of a command and the types of their values, from the signature that the parser reads too."""
    hints, found = get_type_hints(function), {}
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            found.update(_named(get_type_hints(hints[name])))
        elif parameter.kind is not parameter.POSITIONAL_ONLY:
            found.update(_named({name: hints[name]}))
    return found


def _named(fields: Mapping[str, Any]) -> dict[str, Any]:
    named = {f"--{name.replace('_', '-')}": kind for name, kind in fields.items()}
    return named | {f"--no-{flag[2:]}": kind for flag, kind in named.items() if kind is bool}


def _flag(word: str) -> str:
    return word.partition("=")[0].replace("_", "-")


def _file_flag(name: str, words: list[str]) -> None:
    """The file of a grid once stood behind --file."""
    for at, word in enumerate(words):
        if _flag(word) == "--file":
            _, given, file = word.partition("=")
            end = at + (1 if given else 2)
            file = file if given else next(iter(words[at + 1 : end]), "FILE")
            right = command(name, file, *words[:at], *words[end:])
            raise UserError(f"--file is no flag any more, the file comes right after the command: {right}")


def _file_behind(name: str, words: list[str], known: Mapping[str, Any]) -> None:
    """Behind a flag that takes several values the file of a grid would be one of them."""
    if len(words) < 2 or not words[0].startswith("--") or not words[-1].endswith(".py") or "=" in words[-1]:
        return
    flag = next(word for word in reversed(words) if word.startswith("--"))
    if flag in OWN and words[-2] == flag:
        return  # the only value of the flag: a file of one's own without its factory, which its own message says
    if _many(known.get(_flag(flag))):
        right = command(name, words[-1], *words[:-1])
        own = f" (one of your own is written {words[-1]}:FACTORY)" if _flag(flag) in OWN else ""
        raise UserError(f"{words[-1]} is taken for a value of {flag}{own}; the file comes right after the command: {right}")


def _many(kind: Any) -> bool:
    """Whether a flag of this type takes several values."""
    return get_origin(kind) is tuple or any(get_origin(option) is tuple for option in getattr(kind, "__args__", ()))


def _unknown(flag: str, name: str, commands: Commands) -> UserError:
    known = flags(commands[name])
    field = flag[2:].replace("-", "_")
    near = nearest(flag, known, cutoff=0.6)
    others = [other for other in commands if flag in flags(commands[other])]
    if "--config" in known and field in Recipe._fields and field not in FLAGGED:
        hint = f" It is a field of the training: --config recipe.{field}=VALUE."
    elif others:
        hint = f" It is a flag of {_listed(f'bdjax {other}' for other in others)}."
    else:
        hint = f" Did you mean {near!r}?" if near else ""
    return UserError(f"unknown flag {flag!r} of bdjax {name}; {command(name, '--help')} lists them.{hint}")


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _once_each(given: Sequence[str]) -> None:
    """A repeated flag would silently replace the values of the first."""
    for flag, count in collections.Counter(given).items():
        if count > 1:
            raise UserError(f"{flag} is given {count} times; write all its values after one {flag}")
