"""ImageNet's archives: which class is which label, which classes are the 5000, and what each split holds."""

import dataclasses
import importlib.util
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

import numpy as np

from resnext_jax.data.prepare.images import Images
from resnext_jax.data.prepare.tars import ClassTar, class_tars, list_tar, tar_images
from resnext_jax.data.subset import read_class_list
from resnext_jax.errors import UserError
from resnext_jax.progress import Progress

NUM_CLASSES_5K = 5000
NUM_CLASSES_2012, NUM_TRAIN_2012 = 1000, 1_281_167
PARTIAL = "For a trial with what is there, add --partial."


def shipped_lines(file: str) -> list[str]:
    """Return the lines of a file of TFDS's imagenet2012 builder: "labels.txt" or "validation_labels.txt"."""
    # Importing TFDS would take seconds.
    spec = importlib.util.find_spec("tensorflow_datasets")
    roots = (spec.submodule_search_locations or []) if spec else []
    for root in roots:
        path = pathlib.Path(root, "datasets", "imagenet2012", file)
        if path.is_file():
            return path.read_text(encoding="utf-8").split()
    raise UserError(
        f"tensorflow_datasets/datasets/imagenet2012/{file} is not installed. pip install 'tensorflow-datasets>=4.9.10'"
    )


def imagenet1k_classes() -> list[str]:
    """Return the 1000 WordNet ids, sorted, which is the order of the labels."""
    return shipped_lines("labels.txt")


def choose_classes(num_images: Mapping[str, int], imagenet1k: Sequence[str], num_classes: int) -> list[str]:
    """Return the ImageNet-1K classes and the other classes with the most images, sorted; ties are decided by name.

    `num_classes` is their total number: 5000 in the paper (section 5.2).
    """
    others = sorted(num_images.keys() - set(imagenet1k), key=lambda name: (-num_images[name], name))
    return sorted([*imagenet1k, *others[: max(0, num_classes - len(imagenet1k))]])


def list_class_tars(tars: Sequence[ClassTar], pool: Executor) -> dict[str, Images]:
    """Return the images of every class tar, listed in parallel, with label 0."""
    listed, found, progress = {}, 0, Progress("list", len(tars), "class tars")
    for tar, images in zip(tars, pool.map(ClassTar.images, tars), strict=True):
        listed[tar.class_name] = images
        found += len(images)
        progress.update(len(listed), f"{found:,} images")
    progress.close()
    return listed


def labeled(listed: dict[str, Images], class_names: Sequence[str]) -> Images:
    """Return the images of the listed classes among `class_names`; the label is the index in `class_names`."""
    parts = [
        dataclasses.replace(listed[name], label=np.full(len(listed[name]), label, np.int32))
        for label, name in enumerate(class_names)
        if name in listed
    ]
    return Images.join(parts)


def train_2012(train_tar: str, pool: Executor, *, partial: bool) -> tuple[list[str], Images]:
    """Return the class names and the training images of ILSVRC2012_img_train.tar.

    Raises:
      UserError: absent, truncated, not this archive, or not all 1000 classes (without `partial`).
    """
    classes = imagenet1k_classes()
    tars = class_tars(train_tar)
    strangers = sorted({tar.class_name for tar in tars} - set(classes))
    if strangers:
        raise UserError(
            f"{train_tar} has {len(strangers)} class(es) that ImageNet-1K has not, the first {strangers[0]!r}: it is "
            "not ILSVRC2012_img_train.tar. Give that one; for other classes of your own, unpack it and use 'folder'."
        )
    if len(tars) < len(classes) and not partial:
        raise UserError(
            f"{train_tar} has {len(tars):,} of the {len(classes):,} classes; ILSVRC2012_img_train.tar has them all. "
            f"Fetch it again. {PARTIAL}"
        )
    images = labeled(list_class_tars(tars, pool), classes)
    if len(tars) == NUM_CLASSES_2012 and len(images) != NUM_TRAIN_2012 and not partial:
        raise UserError(
            f"{train_tar} has {len(images):,} images; ILSVRC2012_img_train.tar has {NUM_TRAIN_2012:,}. Fetch it again. "
            f"{PARTIAL}"
        )
    return classes, images


def validation_2012(val_tar: str, class_names: Sequence[str], *, partial: bool) -> tuple[Images, int]:
    """Return the images of ILSVRC2012_img_val.tar whose class is in `class_names`, and the number of the others.

    Raises:
      UserError: absent, truncated, not this archive, or not all 50,000 images (without `partial`).
    """
    truth = shipped_lines("validation_labels.txt")
    members = tar_images(list_tar(val_tar), val_tar)
    numbers = [_validation_number(member.name) for member in members]
    wrong = next((member.name for member, n in zip(members, numbers, strict=True) if not 1 <= n <= len(truth)), None)
    if wrong or not members:
        found = f"it holds {wrong!r}" if wrong else "it holds no image"
        raise UserError(
            f"{val_tar} is not ILSVRC2012_img_val.tar, whose files are ILSVRC2012_val_00000001.JPEG to "
            f"_{len(truth):08}.JPEG: {found}. Give the right archive."
        )
    if len(set(numbers)) < len(numbers):  # once as .JPEG and once as .png, say
        raise UserError(f"{val_tar} has the number of an image more than once. Fetch it again.")
    if len(members) < len(truth) and not partial:
        raise UserError(
            f"{val_tar} has {len(members):,} of the {len(truth):,} images; ILSVRC2012_img_val.tar has them all. "
            f"Fetch it again. {PARTIAL}"
        )
    labels = {name: label for label, name in enumerate(class_names)}
    kept = [(member, truth[n - 1]) for member, n in zip(members, numbers, strict=True) if truth[n - 1] in labels]
    images = Images.make(
        val_tar,
        [f"{name}/{os.path.basename(member.name)}" for member, name in kept],
        [member.offset for member, _ in kept],
        [member.size for member, _ in kept],
        [labels[name] for _, name in kept],
    )
    return images, len(members) - len(kept)


def _validation_number(name: str) -> int:
    found = re.fullmatch(r"ILSVRC2012_val_(\d+)\.\w+", os.path.basename(name))
    return int(found[1]) if found else 0


def train_5k(full: str, class_list: str | None, pool: Executor, *, partial: bool) -> tuple[list[str], Images, dict]:
    """Return the class names, the training images and the notes of ImageNet-5K.

    Args:
      full: tar of the class tars of the 22K set, or a folder of class tars.
      class_list: file with the classes; None chooses those with the most images.
      pool: processes that read the class tars.
      partial: allows an archive or a list with fewer or more than 5000 classes.

    Raises:
      UserError: absent, truncated, too few classes, or a class list that does not fit.
    """
    all_1k = imagenet1k_classes()
    tars = class_tars(full)
    available = {tar.class_name for tar in tars}
    wanted = set(available if class_list is None else read_class_list(class_list, sorted(available)))
    known, absent = set(all_1k), [name for name in all_1k if name not in wanted]
    where = class_list or full
    if absent and not partial:
        raise UserError(
            f"{where} lacks {len(absent):,} of the 1000 classes of ImageNet-1K, the first {absent[0]!r}. ImageNet-5K "
            f"contains them all: take the fall 2011 release, which has them, or complete the list. {PARTIAL}"
        )
    more = len(wanted) - NUM_CLASSES_5K
    if not partial and (more < 0 or (class_list and more)):
        change = f"Remove {more:,} of them" if more > 0 else "Add the missing ones"
        raise UserError(f"{where} has {len(wanted):,} classes; ImageNet-5K has {NUM_CLASSES_5K:,}. {change}. {PARTIAL}")
    listed = list_class_tars([tar for tar in tars if tar.class_name in wanted], pool)
    num_images = {name: len(images) for name, images in listed.items()}
    present_1k = [name for name in all_1k if name in wanted]
    chosen = choose_classes(num_images, present_1k, NUM_CLASSES_5K if class_list is None else len(wanted))
    labels = {name: label for label, name in enumerate(chosen)}
    notes = {
        "imagenet1k_classes": present_1k,
        "imagenet1k_labels": [labels[name] for name in present_1k],
        "fewest_images_of_an_added_class": min((num_images[name] for name in chosen if name not in known), default=0),
    }
    return chosen, labeled(listed, chosen), notes
