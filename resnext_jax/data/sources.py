"""Open data sets by name."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

from etils import epath

from resnext_jax.data.absent import absent, bucket_problems
from resnext_jax.data.folder import SPLITS, open_folder, split_folders
from resnext_jax.data.readers import ArraySource, GatherSource, Source, SyntheticSource, read_idx
from resnext_jax.data.records import MANIFEST, UNFINISHED, RecordSource, read_manifest
from resnext_jax.data.subset import ON_BAD_IMAGE, ReplacingSource, read_class_list, subset
from resnext_jax.data.tfds import open_tfds
from resnext_jax.errors import UserError, raise_all, unknown

FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
BUILTIN_DIR = str(pathlib.Path(__file__).parent / "builtin")
DEBIAN_FASHION_MNIST_DIR = "/usr/share/datasets/fashion-mnist"  # package dataset-fashion-mnist


def _find_idx(directory: str, split: str) -> tuple[str, str] | None:
    """Return the files of images and labels of a split in `directory`; None if both are missing."""
    stem = {"train": "train", "validation": "t10k"}[split]
    images, labels = (
        next((path for suffix in ("", ".gz") if (path := epath.Path(directory, file + suffix)).is_file()), None)
        for file in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
    )
    if images and labels:
        return str(images), str(labels)
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
    directory = data_dir or DEBIAN_FASHION_MNIST_DIR
    if files := _find_idx(directory, split):
        return _open_idx(name, *files)
    return open_tfds(name, split, data_dir, [f"{directory}/*-ubyte.gz"])


def _prepared(data_dir: str | None) -> bool:
    """Return whether `prepare` wrote this directory, completely or partly."""
    return data_dir is not None and any(epath.Path(data_dir, file).exists() for file in (MANIFEST, UNFINISHED))


def _open_records(name: str, split: str, data_dir: str | None, **_) -> Source:
    if data_dir and epath.Path(data_dir, UNFINISHED).exists():
        raise UserError(f"{data_dir} is not complete: run the prepare command that began it again, and it goes on.")
    manifest = read_manifest(data_dir) if data_dir else None
    if data_dir is None or manifest is None:
        unset = "" if data_dir else ", by --config.data.dir=DIR, which is not set"
        raise absent(name, split, [os.path.join(data_dir or "DIR", MANIFEST) + unset])
    if name not in ("records", manifest.name):
        raise UserError(
            f"{data_dir} was prepared as {manifest.name!r}, not {name!r}. Set --config.data.name={manifest.name}, or "
            "another --config.data.dir."
        )
    return RecordSource(name, split, data_dir, manifest)


def _open_folder(name: str, split: str, data_dir: str | None, **_) -> Source:
    return (_open_records if _prepared(data_dir) else open_folder)(name, split, data_dir)


def _open_imagenet2012(name: str, split: str, data_dir: str | None, **_) -> Source:
    folders = [folder for key in SPLITS for folder in split_folders(data_dir, key)]
    if _prepared(data_dir) or any(epath.Path(folder).is_dir() for folder in folders if data_dir):
        return _open_folder(name, split, data_dir)
    unset = "" if data_dir else " (--config.data.dir=DIR is not set)"
    places = [f"{folder}/<class>/{unset}" for folder in split_folders(data_dir, split)]
    return open_tfds(name, split, data_dir, [os.path.join(data_dir or "DIR", MANIFEST) + unset, *places])


def _open_synthetic(name: str, split: str, *, data_dir: str | None, num_channels: int, **sizes: int) -> Source:
    raise_all([f"synthetic data: {key} is {n}; it must be 1 or more." for key, n in sizes.items() if n < 1])
    return SyntheticSource(split, **sizes, num_channels=num_channels)


SOURCES: dict[str, Callable[..., Source]] = {
    "builtin": _open_builtin,
    "cifar10": open_tfds,
    "cifar100": open_tfds,
    "fashion_mnist": _open_fashion_mnist,
    "folder": _open_folder,
    "imagenet2012": _open_imagenet2012,
    "imagenet5k": _open_folder,
    "imagenet_v2": open_tfds,
    "records": _open_records,
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
    class_list: str | None = None,
    on_bad_image: str = "error",
) -> Source:
    """Opens one split of a data set.

    Args:
      name: row of SOURCES.
      split: "train" or "validation" (the test split if there is no validation split).
      data_dir: only directory to search; None searches the default places.
      num_images, num_classes, image_size_px: numbers for synthetic images.
      num_channels: channels of synthetic images; with 1, image files are decoded to gray.
      class_list: file with one class name per line; other classes are left out, and labels are renumbered.
      on_bad_image: "error", or "replace" (`ReplacingSource`).

    Raises:
      UserError: unknown name or split; data absent (with every place and the ways to prepare it) or inconsistent.
    """
    problems = [unknown("data set", name, SOURCES)] if name not in SOURCES else []
    problems += [unknown("split", split, SPLITS)] if split not in SPLITS else []
    problems += [unknown("on_bad_image", on_bad_image, ON_BAD_IMAGE)] if on_bad_image not in ON_BAD_IMAGE else []
    if data_dir and name in ("builtin", "synthetic"):
        problems.append(
            f"data.dir={data_dir} is not looked at: the images of data.name={name!r} come with the package. Leave it "
            "out, or name what lies there: --config.data.name=folder, say."
        )
    raise_all(problems + bucket_problems(data_dir, class_list))
    data_dir = os.path.expanduser(data_dir) if data_dir else None
    sizes = {"num_images": num_images, "num_classes": num_classes, "image_size_px": image_size_px}
    source = SOURCES[name](name, split, data_dir=data_dir, num_channels=num_channels, **sizes)
    if source.info.image_shape is None and num_channels == 1:
        source.info = dataclasses.replace(source.info, num_channels=1)
    if class_list is not None:
        class_list = os.path.expanduser(class_list)
        source = subset(source, read_class_list(class_list, source.info.class_names), class_list)
    if on_bad_image == "replace" and not isinstance(source, GatherSource):  # images in memory cannot be broken
        source = ReplacingSource(source)
    return source
