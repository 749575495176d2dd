"""Files that a file manager, an archiver or a notebook leaves between the images, which are no part of a data set."""

NAMES = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),  # thumbnails and looks of folders
        *("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__"),
    }
)


def passed_over(name: str) -> bool:
    """Return whether a file or folder of this name is hidden (its name begins with a dot) or junk."""
    return name.startswith(".") or name.lower() in NAMES
