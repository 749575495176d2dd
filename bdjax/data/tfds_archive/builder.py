"""The tensorflow-datasets builder of any data set whose source yields image files."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from bdjax.data.source import SPLITS, Source


@dataclasses.dataclass(kw_only=True)
class ArchiveConfig(tfds.core.BuilderConfig):
    """Which data set is prepared, and from which folder."""

    source: Source
    folder: Path


class ArchiveImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Rows in archive order (shuffling is off), each with the bytes of its image file, so that no encoder runs."""

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
        for row, (data, label) in enumerate(config.source.encoded(config.folder, split)):
            yield row, {"image": data, "label": label}


def archive_builder(source: Source, folder: Path, home: Path) -> ArchiveImages:
    """Return the builder of a data set.

    Args:
      source: the data set, with ``encoded``.
      folder: of its archives.
      home: where tensorflow-datasets keeps prepared data. The hashes of the archives are part of the name, so that other
        archives are another data set.
    """
    facts = repr((source.version, sorted(source.archives.items())))
    name = f"{source.spec.name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    config = ArchiveConfig(name=name, source=source, folder=folder)

    class Archive(ArchiveImages, skip_registration=True):  # type: ignore[call-arg]
        name = "archive_images"
        BUILDER_CONFIGS: ClassVar = [config]  # a configuration the class does not list is warned about

    return Archive(config=config, data_dir=home)
