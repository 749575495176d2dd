"""Whether a data set has room, in memory and on the disk of the cache: asked before anything is decoded."""

import os
import shutil
from pathlib import Path

from bdjax.errors import UserError

CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def host_memory() -> int:
    """Return the bytes that this process may use: the machine's memory, or the limit of the process or its container."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        import resource

        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    except (ImportError, OSError):  # no such limits on this system
        pass
    for file in CGROUPS:
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(limits)


def check(title: str, rows: int, shape: tuple[int, ...], folder: Path) -> None:
    """Refuse a data set that fits neither memory, where training holds it, nor the disk of the cache.

    Args:
      title: the data set, for the message.
      rows: of all splits.
      shape: of an image, u8[h w c].
      folder: of the cache; it exists.

    Raises:
      UserError: it does not fit, with need it needs and need there is.
    """
    needed = rows
    for side in shape:
        needed *= side
    needed += 4 * rows  # the labels
    need = f"{title}: {rows:,} images of {'x'.join(map(str, shape))} need {size_text(needed)} once they are decoded"
    smaller = 'put a smaller "image_size" into dataset.json, or take fewer images'
    if needed > (memory := host_memory()):
        raise UserError(
            f"{need}, and this process may use {size_text(memory)} of memory, where training holds them all; {smaller}."
        )
    if needed > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"{need}, and the disk of the cache folder {folder} has {size_text(free)} free; set BDJAX_CACHE_DIR to a folder with "
            f"room, or {smaller}."
        )


def size_text(count: float) -> str:
    """Return a number of bytes as text: "21.5 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
