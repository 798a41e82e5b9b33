"""Data sets by name: where each is looked for, how it is opened, and what to do where it is absent."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from resnext_jax.data import decode
from resnext_jax.data.readers import ArraySource, FolderSource, Source, SyntheticSource, TfdsSource, read_idx
from resnext_jax.errors import THIS_COMMAND, UserError, raise_all, unknown

SPLITS = ("train", "validation")
NUM_CLASSES = {"imagenet2012": 1000, "imagenet5k": 5000}
FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
BUILTIN_DIR = str(pathlib.Path(__file__).parent / "builtin")
DEBIAN_FASHION_MNIST_DIR = "/usr/share/datasets/fashion-mnist"  # package dataset-fashion-mnist

# TFDS's command line imports all of these, whatever it is asked to do.
_TFDS_INSTALL = "pip install tensorflow tensorflow-datasets apache-beam mlcroissant importlib_resources"
_TFDS_BUILD = (
    "with TFDS, in an environment of its own (only this step needs TensorFlow):",
    _TFDS_INSTALL,
    "tfds build {name} --file_format=array_record --data_dir=DIR",
)
_FOLDERS = ("as files DIR/train/<class>/*.JPEG and DIR/validation/<class>/*.JPEG (also DIR/val; also .jpg, .png)",)
# data set -> ways to prepare it, each a sentence and the commands
PREPARE: dict[str, tuple[tuple[str, ...], ...]] = {
    "cifar10": (_TFDS_BUILD,),
    "cifar100": (_TFDS_BUILD,),
    "fashion_mnist": (("on Debian or Ubuntu:", "apt-get install dataset-fashion-mnist"), _TFDS_BUILD),
    "folder": (_FOLDERS,),
    "imagenet2012": (
        _FOLDERS,
        (
            "with TFDS: put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (https://image-net.org) into a folder "
            "TARS, then, in an environment of its own (only this step needs TensorFlow):",
            _TFDS_INSTALL,
            "tfds build imagenet2012 --file_format=array_record --data_dir=DIR --manual_dir=TARS",
        ),
    ),
    "imagenet5k": ((f"{_FOLDERS[0]}; validation may have 1000 of the 5000 classes",),),
}


def _absent(name: str, split: str, places: Sequence[str]) -> UserError:
    lines = [f"data set {name!r} ({split} split) was not found. Looked for:", *(f"  - {place}" for place in places)]
    lines.append("Prepare it in one of these ways, then add --config.data.dir=DIR:")
    for sentence, *commands in PREPARE[name]:
        lines += [f"  - {sentence}", *(f"      {command.format(name=name)}" for command in commands)]
    lines += ["Or run without it, on synthetic images:"]
    lines += [f"      {THIS_COMMAND} --config.data.name=synthetic"]
    return UserError("\n".join(lines))


# ---- idx files: the built-in images and the full Fashion-MNIST


def _find_idx(directory: str, split: str) -> tuple[str, str] | None:
    """The split's files of images and labels in `directory`; None if neither is there."""
    stem = {"train": "train", "validation": "t10k"}[split]
    found = [
        next(filter(os.path.isfile, (os.path.join(directory, file + suffix) for suffix in ("", ".gz"))), None)
        for file in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
    ]
    images, labels = found
    if images and labels:
        return images, labels
    if images or labels:
        raise UserError(
            f"{directory} has {images or labels} but not its other half; {stem}-images-idx3-ubyte and "
            f"{stem}-labels-idx1-ubyte (or .gz) belong together. Fetch the missing one."
        )
    return None


def _open_idx(name: str, images_path: str, labels_path: str) -> Source:
    images, labels = read_idx(images_path), read_idx(labels_path)
    problems = [
        f"{path} has {array.ndim} dimension(s) where {what} have {wanted}. Fetch the file again."
        for path, array, what, wanted in ((images_path, images, "images", 3), (labels_path, labels, "labels", 1))
        if array.ndim != wanted
    ]
    if len(images) != len(labels):
        problems.append(
            f"{images_path} has {len(images)} images and {labels_path} {len(labels)} labels. Fetch both from one place."
        )
    raise_all(problems)
    return ArraySource(name, images[..., None], labels, FASHION_MNIST_CLASSES, labels_path)


def _open_builtin(name: str, split: str, **_) -> Source:
    files = _find_idx(BUILTIN_DIR, split)
    if files is None:
        raise UserError(f"the built-in images are missing from {BUILTIN_DIR}. Install resnext_jax again.")
    return _open_idx(name, *files)


def _open_fashion_mnist(name: str, split: str, data_dir: str | None, **_) -> Source:
    # A directory that was named is meant: no other takes its place.
    directories = [data_dir or DEBIAN_FASHION_MNIST_DIR]
    for directory in directories:
        if files := _find_idx(directory, split):
            return _open_idx(name, *files)
    return _open_tfds(name, split, data_dir, [f"{directory}/*-ubyte.gz" for directory in directories])


# ---- class folders


def _split_folders(data_dir: str | None, split: str) -> list[str]:
    folders = {"train": ("train",), "validation": ("validation", "val")}[split]
    return [os.path.join(data_dir or "DIR", folder) for folder in folders]


def _open_folder(name: str, split: str, data_dir: str | None, **_) -> Source:
    roots = {}
    for key in SPLITS if data_dir else ():
        for folder in filter(os.path.isdir, _split_folders(data_dir, key)):
            roots.setdefault(key, folder)
    if split not in roots:
        unset = "" if data_dir else ", by --config.data.dir=DIR, which is not set"
        raise _absent(name, split, [folder + unset for folder in _split_folders(data_dir, split)])
    classes = {
        key: sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
        for key, root in roots.items()
    }
    all_of = "train" if "train" in classes else split
    wanted = NUM_CLASSES.get(name, max(1, len(classes[all_of])))
    problems = []
    if len(classes[all_of]) != wanted:
        problems.append(
            f"{roots[all_of]} has {len(classes[all_of])} class folders; {name!r} has {wanted}. "
            "Add the missing ones; a set of your own is --config.data.name=folder."
        )
    for key, other in (("train", "validation"), ("validation", "train")):
        only = sorted(set(classes.get(key, ())) - set(classes.get(other, classes.get(key, ()))))
        # imagenet5k is validated on ImageNet-1K, whose classes are 1000 of its 5000
        if only and not (name == "imagenet5k" and key == "train"):
            listed = ", ".join(only[:5]) + (", ..." if len(only) > 5 else "")
            problems.append(
                f"{len(only)} class folder(s) of {roots[key]} are not in {roots[other]}: {listed}. "
                "Both splits must have the same classes: add or remove folders."
            )
    raise_all(problems)
    return FolderSource(name, roots[split], classes[all_of])


# ---- TFDS


def _open_tfds(name: str, split: str, data_dir: str | None, places: Sequence[str] = (), **_) -> Source:
    from etils import epath

    default_dir = os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")
    roots = [epath.Path(root) for root in (data_dir, default_dir) if root]
    patterns = ("dataset_info.json", "[0-9]*/dataset_info.json", f"{name}/[0-9]*/dataset_info.json")
    found = (path.parent for root in roots for pattern in patterns for path in _newest_first(root.glob(pattern)))
    directory = next(found, None)
    if directory is None:
        raise _absent(name, split, [*places, *(f"{root / name} (TFDS)" for root in roots)])

    import tensorflow_datasets as tfds  # slow to import, and only this needs it

    builder: Any = tfds.builder_from_directory(directory)
    names = {"train": ("train",), "validation": ("validation", "test")}[split]
    tfds_split = next((key for key in names if key in builder.info.splits), None)
    if builder.name != name or tfds_split is None:
        raise UserError(
            f"{directory} holds {builder.name!r} with the splits {', '.join(builder.info.splits) or 'none'}; wanted is "
            f"{name!r}, {' or '.join(names)}. Change --config.data.name or --config.data.dir, or prepare it anew."
        )
    try:
        source = TfdsSource(name, builder, tfds_split)
    except NotImplementedError:
        raise UserError(
            f"{directory} is in the format {builder.info.file_format.value!r}, which cannot be read by index; "
            "'array_record' can. Convert it once, in an environment of its own (only this step needs TensorFlow):\n"
            f"      {_TFDS_INSTALL}\n"
            f"      tfds convert_format --dataset_version_dir={directory} --out_file_format=array_record"
        ) from None
    shape = builder.info.features["image"].shape
    return source if None in shape else _in_memory(source, shape)


def _newest_first(paths):
    return sorted(paths, key=lambda path: [int(n) for n in path.parent.name.split(".") if n.isdigit()], reverse=True)


def _in_memory(source: TfdsSource, shape: tuple[int, int, int]) -> Source:
    """Decodes small images of one shape (CIFAR, Fashion-MNIST) once, at some 90 us each, instead of every epoch."""
    images, labels = np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int64)
    for index in range(len(source)):
        record = source[index]
        images[index] = decode.decode(bytes(record.image), record.name, num_channels=shape[-1])
        labels[index] = record.label
    return ArraySource(source.info.name, images, labels, source.info.class_names, source.where)


def _open_imagenet2012(name: str, split: str, data_dir: str | None, **_) -> Source:
    if data_dir and any(os.path.isdir(folder) for key in SPLITS for folder in _split_folders(data_dir, key)):
        return _open_folder(name, split, data_dir)
    unset = "" if data_dir else " (--config.data.dir=DIR is not set)"
    return _open_tfds(
        name, split, data_dir, [f"{folder}/<class>/{unset}" for folder in _split_folders(data_dir, split)]
    )


# ---- the table and the door


def _open_synthetic(
    name: str, split: str, num_images: int, num_classes: int, image_size_px: int, num_channels: int, **_
) -> Source:
    sizes = {"num_images": num_images, "num_classes": num_classes, "image_size_px": image_size_px}
    raise_all([f"synthetic data: {key} is {n}; it must be 1 or more." for key, n in sizes.items() if n < 1])
    return SyntheticSource(split, **sizes, num_channels=num_channels)


SOURCES: dict[str, Callable[..., Source]] = {
    "builtin": _open_builtin,
    "cifar10": _open_tfds,
    "cifar100": _open_tfds,
    "fashion_mnist": _open_fashion_mnist,
    "folder": _open_folder,
    "imagenet2012": _open_imagenet2012,
    "imagenet5k": _open_folder,
    "synthetic": _open_synthetic,
}


def open_source(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    num_images: int = 10_000,
    num_classes: int = 1000,
    image_size_px: int = 32,
    num_channels: int = 3,
) -> Source:
    """Opens one split of a data set.

    Args:
      name: a row of SOURCES.
      split: "train", or "validation" (which is the test split of a set that has no other).
      data_dir: where to look first; None looks in the default places only.
      num_images, num_classes, image_size_px, num_channels: of synthetic images; every other set has its own.

    Raises:
      UserError: unknown name or split; data absent (with every place and the ways to prepare it) or inconsistent.
    """
    problems = [unknown("data set", name, SOURCES)] if name not in SOURCES else []
    problems += [unknown("split", split, SPLITS)] if split not in SPLITS else []
    raise_all(problems)
    data_dir = os.path.expanduser(data_dir) if data_dir else None
    sizes = {"num_images": num_images, "num_classes": num_classes, "image_size_px": image_size_px}
    return SOURCES[name](name, split, data_dir=data_dir, num_channels=num_channels, **sizes)
