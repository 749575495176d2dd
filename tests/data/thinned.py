"""Copies of real archives with every tenth row of a class: real files in their real layout, in a tenth of the time."""

import collections
import shutil
import zipfile
from pathlib import Path

from bdjax.data import archives
from bdjax.data.source import SPLITS
from bdjax.data.table import DATASETS
from tests.data import made_up

EVERY = 10
TESTED = "GTSRB/Final_Test/Images"  # of the images whose table lies in an archive of its own


def thinned(name, folder, patch):
    """Write thin copies of the archives of CIFAR-10 or GTSRB to ``folder``, and declare them to be the right ones.

    Returns the folder to read: that of the real archives where an edition consists of other files than zip archives.
    """
    source = DATASETS[name]
    home = archives.target(source, None, folder)
    edition = archives.complete(source, home)[0]
    if not all(Path(file).suffix in (".zip", ".txt") for file in edition.archives):
        return home
    dropped, counts = set(), {}
    for split in SPLITS:
        seen = collections.Counter()
        for row in edition.encoded(home, split):
            if seen[row.label] % EVERY:
                dropped.add(row.name.rpartition(": ")[2])
            seen[row.label] += 1
        counts[split] = tuple(-(-seen[label] // EVERY) for label in range(source.spec.classes))
    folder.mkdir(parents=True)
    for file in edition.archives:
        if Path(file).suffix == ".zip":
            _copy(home / file, folder / file, dropped)
        else:
            shutil.copy(home / file, folder / file)
    made_up.declare(patch, name, edition.name, folder, counts)
    return folder


def _copy(source, target, dropped):
    """Copy a zip archive without the entries ``dropped``, and its tables without their lines."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as thin:
        for entry in archive.namelist():
            if entry in dropped:
                continue
            data = archive.read(entry)
            if entry.endswith(".csv"):
                beside = entry.rpartition("/")[0] or TESTED
                lines = data.decode().splitlines(keepends=True)
                data = "".join(line for line in lines if f"{beside}/{line.partition(';')[0]}" not in dropped).encode()
            thin.writestr(entry, data)
