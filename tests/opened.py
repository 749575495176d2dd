"""The files that this process opens while a block runs."""

import contextlib
import sys

_listening = []


def _hear(event, arguments):
    if event == "open":
        for paths in _listening:
            paths.append(str(arguments[0]))


sys.addaudithook(_hear)  # it cannot be removed: between two blocks it hears and does nothing


@contextlib.contextmanager
def opened():
    """Yield a list that receives the path of every file that is opened."""
    paths = []
    _listening.append(paths)
    try:
        yield paths
    finally:
        _listening.remove(paths)
