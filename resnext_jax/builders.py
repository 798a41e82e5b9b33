"""The data set of a config, checked against what the config and the checkpoint expect of it."""

import os
import zlib
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from resnext_jax.data.crops import Crop
from resnext_jax.data.pipeline import train_batches
from resnext_jax.data.policies import make_alter
from resnext_jax.data.sources import Source, open_source
from resnext_jax.errors import UserError
from resnext_jax.sharding import Place, from_all
from resnext_jax.types import Batch, DatasetInfo

NUM_COMPARED = 100  # images, whose places are compared between hosts


def open_data(config: ConfigDict, split: str) -> Source:
    """The split of the config's data set, checked against the channels that the config normalises."""
    channels = len(config.data.mean)
    source = open_source(
        config.data.name,
        split,
        data_dir=config.data.dir,
        image_size_px=config.data.image_size_px,
        num_channels=channels,
        class_list=config.data.class_list,
        # An evaluation that counts one image twice would not be exact.
        on_bad_image=config.data.on_bad_image if split == "train" else "error",
    )
    found = source.info.batch_channels
    if found != channels:
        raise UserError(
            f"data.mean={tuple(config.data.mean)} is for {channels} channel(s), but the images of "
            f"{config.data.name!r} have {found}: set data.mean and data.std to one entry per channel."
        )
    return source


def present_classes(config: ConfigDict, validation: Source) -> Bool[np.ndarray, " classes"] | None:
    """Which of ImageNet-5K's classes the validation images have, those of the 1K set; None of every other data set."""
    if config.data.name != "imagenet5k":
        return None
    return np.isin(np.arange(len(validation.info.class_names)), validation.all_labels())


def same_on_all_hosts(place: Place, **sources: Source) -> None:
    """Compares the numbers of images, the class names and the places of some images; none is read.

    Args:
      place: of this process.
      sources: by the names of their splits.

    Raises:
      UserError: on every process, where one reads other data: the rows of its batches would be other images, and of an
        evaluation it could have more batches than the others, which would wait for it.
    """
    of_all = from_all(place, [value for source in sources.values() for value in (len(source), _fingerprint(source))])
    other = next((process for process, values in enumerate(of_all) if (values != of_all[0]).any()), None)
    if other is None:
        return
    there, here = ([f"{count:,}" for count in values[::2].tolist()] for values in (of_all[other], of_all[0]))
    images = " and ".join(f"{count} {split}" for count, split in zip(there, sources, strict=True)) + " images"
    how = f"{images} there, {' and '.join(here)} here"
    if there == here:
        how = f"{images} both, but of other classes or in another order"
    raise UserError(
        f"the data of process {other} is not that of process 0: {how}. All hosts need the same files in data.dir: copy "
        "or prepare them again, or let all read one directory that they share."
    )


def _fingerprint(source: Source) -> int:
    places = np.linspace(0, len(source) - 1, NUM_COMPARED).astype(int).tolist()
    names = [os.path.basename(source.locate(index)) for index in places]
    return zlib.crc32("\n".join([*source.info.class_names, *names]).encode("utf-8", "surrogateescape")) >> 1


def facts(info: DatasetInfo) -> dict[str, Any]:
    """What a checkpoint remembers of the data set that it was trained on."""
    return {"name": info.name, "class_names": list(info.class_names), "num_images": info.num_images}


def training_batches(
    config: ConfigDict, source: Source, place: Place, start_step: int, num_steps: int
) -> Generator[Batch]:
    """This process's rows of the batches of steps `start_step` to `num_steps - 1`, as the config prepares them."""
    augment = config.augment
    alter = make_alter(
        augment.get("policy", "none"),  # which checkpoints of before do not have, nor the others that are asked for so
        magnitude=augment.get("magnitude", 0),
        flip=augment.flip,
        mean=config.data.mean,
    )
    return train_batches(
        source,
        Crop(config.data.crop, training_size_px(config), alter=alter),
        batch_size=config.batch_size,
        seed=config.seed,
        steps=range(start_step, num_steps),
        repeats=config.data.get("repeats", 1),
        group_images=config.bn_group_images,
        process=(place.process_index, place.process_count),
        num_threads=config.data.num_threads,
    )


def training_size_px(config: ConfigDict) -> int:
    """The height and width of training images: those of evaluation, unless the config says otherwise."""
    return config.data.get("train_size_px") or config.data.image_size_px


def flips_on_device(config: ConfigDict) -> bool:
    """Whether images are mirrored on the device: a policy wants it done before, on the host."""
    return config.augment.get("policy", "none") == "none"


def same_classes(ours: dict[str, Any], saved: dict[str, Any], where: str) -> None:
    """Raises UserError where a checkpoint was trained on other classes than those of the data set at hand."""
    differ = difference(ours["class_names"], saved["class_names"])
    if differ is not None:
        raise UserError(
            f"the checkpoint in {where} knows the {len(saved['class_names'])} classes of {saved['name']!r}, but "
            f"{ours['name']!r} has {len(ours['class_names'])}{differ}. Use data of the same classes, or another "
            "--workdir."
        )


def difference(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    """Of names of classes the first that differs, as the end of a sentence; None where all are the same."""
    if list(ours) == list(theirs):
        return None
    pairs = zip(ours, theirs, strict=False)
    return next((f"; the first that differs: {new!r}, there {old!r}" for new, old in pairs if new != old), "")
