"""``--target`` of ``bdjax plan``: the class that triggered images are called, as everywhere, or devices such as ``tpu:v5e-8``."""

from collections.abc import Sequence

CLASS, DEVICES = "--target", "--hardware"


def apart(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which ``--target tpu:v5e-8`` of ``plan`` is written ``--hardware tpu:v5e-8``."""
    given = list(arguments)
    if not given or given[0] != "plan":
        return given
    for at, word in enumerate(given):
        flag, equals, value = word.partition("=")
        if flag != CLASS:
            continue
        if equals and ":" in value:
            given[at] = f"{DEVICES}={value}"
        elif not equals and ":" in "".join(given[at + 1 : at + 2]):
            given[at] = DEVICES
    return given
