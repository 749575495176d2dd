"""What a refused checkpoint is made of, learnt without running any of it, and the command that saves its weights alone."""

import io
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bdjax.data.pickles.torch_stand_ins import Inert

_DEEP = 4  # containers inside one another that are looked into


class Unknown(Inert):
    """Stands for any object: only its name is known."""

    name = ""


class _Ordered(dict[Any, Any]):
    def __setstate__(self, state: Any) -> None:
        """Nothing of it is kept."""


class _Outliner(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """A class of its own for every name, which does nothing; nothing is imported."""
        if (module, name) == ("collections", "OrderedDict"):
            return _Ordered
        return type("Unknown", (Unknown,), {"name": f"{module}.{name}"})

    def persistent_load(self, saved: Any) -> Any:
        """Data are not read."""
        return Unknown()


def advice(path: Path, known: Mapping[str, Any]) -> str:
    """Say how to save the weights of a refused file from a trusted source: of a pickled network, or of a part of the file.

    Args:
      path: the file.
      known: names that are read.
    """
    load = f"torch.load({str(path)!r}, map_location='cpu', weights_only=False)"
    begin = "If you trust the file, save its weights alone where its classes can be imported: "
    try:
        root = _outline(path)
    except Exception:  # damaged as well: the general advice holds
        root = None
    if isinstance(root, Unknown):
        return f"{begin}torch.save({load}.state_dict(), 'weights.pt') if it is a whole pickled network"
    if not isinstance(root, Mapping):
        return f"{begin}with torch.load(..., weights_only=False), torch.save(network.state_dict(), 'weights.pt')"
    keys = f"it holds {', '.join(str(key) for key in list(root)[:8])}"
    states = [place for place, value in _walk(root) if isinstance(value, Mapping) and _weights(value, known)]
    if states and states[0]:
        return f"{begin}torch.save({load}{_index(states[0])}, 'weights.pt'); {keys}"
    networks = [place for place, value in _walk(root) if isinstance(value, Unknown) and value.name not in known]
    place = _index(networks[0]) if networks and not states else ""
    return f"{begin}torch.save({load}{place}.state_dict(), 'weights.pt') if that is a whole network; {keys}"


def _outline(path: Path) -> Any:
    with open(path, "rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                entry = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                return _Outliner(io.BytesIO(archive.read(entry)), encoding="latin1").load()
        file.seek(0)
        first = _Outliner(file, encoding="latin1").load()
        if type(first) is not int:
            return first
        for _ in range(2):  # version and system
            _Outliner(file, encoding="latin1").load()
        return _Outliner(file, encoding="latin1").load()


def _walk(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield place, value
    if isinstance(value, Mapping) and len(place) < _DEEP:
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _walk(inner, (*place, key))


def _weights(value: Mapping[Any, Any], known: Mapping[str, Any]) -> bool:
    """Return whether a mapping looks like a state dict all of whose entries are read."""
    names = [name for name in value if isinstance(name, str) and name.endswith("weight")]
    read = all(not isinstance(item, Unknown) or not item.name or item.name in known for item in value.values())
    return bool(names) and read


def _index(place: tuple[Any, ...]) -> str:
    return "".join(f"[{key!r}]" for key in place)
