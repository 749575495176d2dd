"""The tensorflow-datasets builder of any data set whose source yields image files."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from bdjax.data.images import plain, portable
from bdjax.data.source import SPLITS, UNREADABLE, Edition, Source
from bdjax.errors import UserError


@dataclasses.dataclass(kw_only=True)
class ArchiveConfig(tfds.core.BuilderConfig):
    """Which data set is prepared, from which edition, and from which folder."""

    source: Source
    edition: Edition
    folder: Path


class ArchiveImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Rows in archive order (shuffling is off), each with the bytes of a JPEG or PNG file, so that no TensorFlow encoder runs."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        spec = self.builder_config.source.spec
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=spec.image_shape),
                    "label": tfds.features.ClassLabel(names=list(spec.class_names)),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        shape, resize = config.source.spec.image_shape, config.edition.resize
        number, name = 0, ""
        try:
            for number, row in enumerate(config.edition.encoded(config.folder, split)):
                name = f" {row.name}:"
                image = portable(row.read(), shape, resize)
                name = ""
                yield number, {"image": image, "label": row.label}
        except UNREADABLE as error:  # not to be taken for a failure to write
            if isinstance(error, UserError) and not name:
                raise
            reason = str(error).rstrip(".") if isinstance(error, UserError) else plain(error)
            title = config.source.spec.name
            raise UserError(f"{title}: the {split} split cannot be read near row {number}:{name} {reason}.") from error


def archive_builder(source: Source, edition: Edition, folder: Path, home: Path) -> ArchiveImages:
    """Return the builder of a data set, not prepared yet; it takes the archives as they are, checked by whoever calls.

    Args:
      source: the data set.
      edition: the release that its archives are, with ``encoded``.
      folder: of its archives.
      home: where tensorflow-datasets keeps prepared data, in ``<data set>/<edition>-<digest>``. The digest is over those of the
        archives, so that other archives are another folder.
    """
    facts: tuple[Any, ...] = (source.version, sorted(edition.archives.items()), sorted(edition.counts.items()))
    facts += (edition.content,) if edition.content else ()
    name = f"{edition.name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"
    config = ArchiveConfig(name=name, source=source, edition=edition, folder=folder)

    class Archive(ArchiveImages, skip_registration=True):  # type: ignore[call-arg]
        name = source.spec.name
        BUILDER_CONFIGS: ClassVar = [config]  # a configuration the class does not list is warned about

    return Archive(config=config, data_dir=home)
