"""The archives through tensorflow-datasets: prepared once as array_record, read without TensorFlow."""

import functools
import shutil
import sys
from pathlib import Path
from typing import Any

from bdjax.data.cache import written_in
from bdjax.data.source import Edition, Row, Source
from bdjax.errors import UserError


def encoded(source: Source, edition: Edition, folder: Path, split: str, root: Path) -> list[Row]:
    """Return every row, in archive order, from a tensorflow-datasets folder that is prepared if need be.

    Args:
      source: the data set.
      edition: the release that its archives are, with ``encoded``.
      folder: of its archives.
      split: "train" or "test".
      root: the cache; the prepared data set lies in its folder ``tfds``. A damaged one is named on stderr and prepared again.

    Raises:
      UserError: tensorflow-datasets is not installed, an archive cannot be read, or the folder cannot be written to.
    """
    builder = prepared(source, edition, folder, root)
    try:
        return _read(builder, split)
    except (RuntimeError, OSError, ValueError, IndexError) as error:  # what array_record raises for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"bdjax: warning: {builder.data_path} is damaged ({reason}); it is prepared again", file=sys.stderr)
    with written_in(root / "tfds"):
        shutil.rmtree(builder.data_path)
    return _read(prepared(source, edition, folder, root), split)


def prepared(source: Source, edition: Edition, folder: Path, root: Path) -> Any:
    """Return the builder of a data set after it has written its array_record files; arguments and errors of :func:`encoded`."""
    try:
        import tensorflow_datasets as tfds

        from bdjax.data.tfds_archive.builder import archive_builder
    except ImportError as error:
        raise UserError(f"via 'tfds' needs tensorflow-datasets ({error}): pip install 'bdjax[datasets]'.") from error
    builder = archive_builder(source, edition, folder, root / "tfds")
    with written_in(Path(builder.data_path)):
        builder.download_and_prepare(file_format=tfds.core.FileFormat.ARRAY_RECORD)
    return builder


def _read(builder: Any, split: str) -> list[Row]:
    import tensorflow_datasets as tfds

    rows = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    return [
        Row(f"{builder.data_path}: image {i}", int(row["label"]), functools.partial(bytes, row["image"]))
        for i, row in enumerate(rows)
    ]
