"""A folder that ``bdjax export-data`` wrote, used as a data set: its training images are poisoned before any run poisons them."""

import json
from pathlib import Path

FORMAT, MANIFEST = "bdjax-poisoned-data", "manifest.json"


def already_poisoned(name: str) -> str:
    """What is to be known of a data set whose training images an attack has poisoned already; "" where none did.

    Args:
      name: of a data set, or the path of a folder.
    """
    try:
        known = json.loads((Path(name).expanduser() / MANIFEST).read_bytes())
        if known["format"] != FORMAT or not known["poisoned"]:
            return ""
        attack, images = known["config"]["attack"]["name"].rpartition(":")[2], known["poisoned"]
        ratio, title = known["ratio"], known["name"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""  # another file of this name, or none
    return (
        f"{title} is an exported training set in which {attack} has poisoned {images:,} images (ratio {ratio:g}, see its "
        f"{MANIFEST}): a network at poison ratio 0 was attacked here too, the ratio of a record counts only what its own run "
        "added, and ASR is that of the run's own trigger"
    )
