"""The parts that a config names: data, network, augmentation and batches. Training and evaluation share them."""

import os
import zlib
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from resnext_jax.data.crops import Crop
from resnext_jax.data.pipeline import train_batches
from resnext_jax.data.policies import make_alter
from resnext_jax.data.sources import Source, open_source
from resnext_jax.errors import UserError
from resnext_jax.models import zoo
from resnext_jax.ops.augment import make_augment
from resnext_jax.ops.mix import mix
from resnext_jax.sharding import Place, from_all
from resnext_jax.types import Batch, DatasetInfo

NUM_COMPARED = 100  # images whose paths are compared between hosts

# ----------------------------------------------------------------------------------------------------------- Network


def build_model(config: ConfigDict, num_classes: int, place: Place) -> zoo.Network:
    """Return the network that a config names, with the convolution algorithms for the devices of `place`."""
    return zoo.build_model(
        zoo.select(**config.model),
        num_classes,
        platform=place.platform,
        chip=place.chip,
        conv_impl=config.conv_impl,
        compute_dtype=config.compute_dtype,
        bn_group_images=config.bn_group_images,
    )


# -------------------------------------------------------------------------------------------------------------- Data


def open_data(config: ConfigDict, split: str) -> Source:
    """Open a split of the config's data set, and check its channels against those that the config normalizes."""
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


def facts(info: DatasetInfo) -> dict[str, Any]:
    """Return what a checkpoint stores about the data set that it was trained on."""
    return {"name": info.name, "class_names": list(info.class_names), "num_images": info.num_images}


def present_classes(config: ConfigDict, validation: Source) -> Bool[np.ndarray, " classes"] | None:
    """Return which classes of ImageNet-5K the validation images have (those of the 1K set); None for other data."""
    if config.data.name != "imagenet5k":
        return None
    return np.isin(np.arange(len(validation.info.class_names)), validation.all_labels())


def require_same_classes(ours: dict[str, Any], saved: dict[str, Any], where: str) -> None:
    """Raise UserError if a checkpoint was trained on classes other than those of the current data set.

    Args:
      ours: `facts` of the current data set.
      saved: `facts` stored in the checkpoint.
      where: location of the checkpoint, for the message.
    """
    difference = first_difference(ours["class_names"], saved["class_names"])
    if difference is not None:
        raise UserError(
            f"the checkpoint in {where} knows the {len(saved['class_names'])} classes of {saved['name']!r}, but "
            f"{ours['name']!r} has {len(ours['class_names'])}{difference}. Use data of the same classes, or another "
            "--workdir."
        )


def first_difference(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    """Return the first pair of class names that differ, as the end of a sentence; None if all are equal."""
    if list(ours) == list(theirs):
        return None
    pairs = zip(ours, theirs, strict=False)
    return next((f"; the first that differs: {new!r}, there {old!r}" for new, old in pairs if new != old), "")


def require_same_on_all_hosts(place: Place, **sources: Source) -> None:
    """Compare the number of images, the class names and the paths of some images on all hosts. Read no image.

    Args:
      sources: data sets, by the names of their splits.

    Raises:
      UserError: on every process if one of them has other data. Its rows would be other images, and it could wait
        forever for batches of an evaluation that the others do not have.
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
    indices = np.linspace(0, len(source) - 1, NUM_COMPARED).astype(int).tolist()
    names = [os.path.basename(source.locate(index)) for index in indices]
    return zlib.crc32("\n".join([*source.info.class_names, *names]).encode("utf-8", "surrogateescape")) >> 1


# ----------------------------------------------------------------------------------- Training batches, augmentation


def training_batches(
    config: ConfigDict, source: Source, place: Place, start_step: int, num_steps: int
) -> Generator[Batch]:
    """Yield this process's rows of the batches of steps `start_step` to `num_steps - 1`."""
    augment = config.augment
    alter = make_alter(
        augment.policy,
        magnitude=augment.magnitude,
        flip=augment.flip,
        mean=config.data.mean,
    )
    return train_batches(
        source,
        Crop(config.data.crop, training_size_px(config), alter=alter),
        batch_size=config.batch_size,
        seed=config.seed,
        steps=range(start_step, num_steps),
        repeats=config.data.repeats,
        group_images=config.bn_group_images,
        process=(place.process_index, place.process_count),
        num_threads=config.data.num_threads,
    )


def training_size_px(config: ConfigDict) -> int:
    """Return the height and width of training images; by default those of evaluation."""
    return config.data.train_size_px or config.data.image_size_px


def build_augment(config: ConfigDict) -> Callable:
    """Return the augmentation on the device: (uint8 images, keys) -> normalized float32 images."""
    augment = config.augment
    return make_augment(
        mean=config.data.mean,
        std=config.data.std,
        color_jitter_strength=augment.color_jitter,
        lighting_std=augment.lighting_std,
        flip_images=augment.flip and augment.policy == "none",  # a policy is applied after the flip, on the host
        pad_px=augment.pad_px,
        erase_probability=augment.erase_probability,
    )


def build_mix(config: ConfigDict) -> Callable | None:
    """Return mixup and cutmix: (images, labels, keys) -> mixed images and labels; None if the config has neither."""
    augment = config.augment
    if not (augment.mixup_alpha or augment.cutmix_alpha):
        return None
    return partial(
        mix,
        mixup_alpha=augment.mixup_alpha,
        cutmix_alpha=augment.cutmix_alpha,
        group_images=config.bn_group_images,
    )
