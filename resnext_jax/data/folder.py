"""Class folders of image files: DIR/train/<class>/*.JPEG and DIR/validation/<class>/*.JPEG."""

import os
from collections.abc import Sequence

import numpy as np
from etils import epath

from resnext_jax.data.absent import absent
from resnext_jax.data.readers import Labels, Record, Source
from resnext_jax.errors import UserError, raise_all
from resnext_jax.types import DatasetInfo

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
NUM_CLASSES = {"imagenet2012": 1000, "imagenet5k": 5000}
SPLITS = ("train", "validation")


class FolderSource:
    """Class folders of image files, `root/<class>/<file>`; within a class in the order of the files' names.

    Raises:
      UserError: a class folder without an image.
    """

    def __init__(self, name: str, root: str, class_names: Sequence[str]):
        names, lengths, labels = [], [], []
        present = set(class_folders(root))
        for label, class_name in enumerate(class_names):
            folder = os.path.join(root, class_name)
            if class_name not in present:  # imagenet5k's validation split has 1000 of the 5000 classes
                continue
            files = [os.fsencode(file) for file in image_files(folder)]
            names += [b"".join(files)]
            lengths += [[len(file) for file in files]]
            labels += [np.full(len(files), label, np.int32)]
        # One string and where each name ends in it: as Python strings, ImageNet-5K's 6.8 million names are 0.6 GB.
        self.names, self.ends = b"".join(names), np.cumsum(np.concatenate(lengths))
        self.root, self.labels = root, np.concatenate(labels)
        self.info = DatasetInfo(name, len(self.labels), tuple(class_names), None)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        path = self.locate(index)
        try:
            return Record(epath.Path(path).read_bytes(), int(self.labels[index]), path)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{path} could not be read: {reason}. Put it back, then start again.") from None

    def locate(self, index: int) -> str:
        file = self.names[self.ends[index - 1] if index else 0 : self.ends[index]]
        return os.path.join(self.root, self.info.class_names[self.labels[index]], os.fsdecode(file))

    def all_labels(self) -> Labels:
        return self.labels


def is_image(file_name: str) -> bool:
    """Return whether a file is an image, by its name."""
    return file_name.lower().endswith(IMAGE_SUFFIXES) and not file_name.startswith(".")


def list_names(folder: str) -> list[str]:
    """Return the names in a folder, sorted, without hidden ones; raises UserError if it cannot be listed."""
    try:
        # epath is ten times slower on a local disk, which matters at a million files.
        names = [path.name for path in epath.Path(folder).iterdir()] if "://" in folder else os.listdir(folder)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder} could not be listed: {reason}. Make it readable (is its disk there?).") from None
    return sorted(name for name in names if not name.startswith("."))


def image_files(folder: str) -> list[str]:
    """Return the names of the image files in a class folder, sorted as bytes; raises UserError if there is none."""
    files = sorted(filter(is_image, list_names(folder)), key=os.fsencode)
    if not files:
        raise UserError(
            f"{folder} has no image file ({', '.join(IMAGE_SUFFIXES)}). Every class needs one or more: "
            "add images, or remove the folder from every split."
        )
    return files


def class_folders(root: str) -> list[str]:
    """Return the names of the folders in `root`, sorted."""
    return [name for name in list_names(root) if epath.Path(root, name).is_dir()]


def split_folders(data_dir: str | None, split: str) -> list[str]:
    """Return the possible folders of a split, the preferred one first."""
    folders = {"train": ("train",), "validation": ("validation", "val")}[split]
    return [os.path.join(data_dir or "DIR", folder) for folder in folders]


def split_roots(data_dir: str) -> dict[str, str]:
    """Return the folder of each split that `data_dir` has."""
    found = {key: [root for root in split_folders(data_dir, key) if epath.Path(root).is_dir()] for key in SPLITS}
    return {key: roots[0] for key, roots in found.items() if roots}


def open_folder(name: str, split: str, data_dir: str | None, **_) -> Source:
    roots = split_roots(data_dir) if data_dir else {}
    if split not in roots:
        unset = "" if data_dir else ", by --config.data.dir=DIR, which is not set"
        raise absent(name, split, [folder + unset for folder in split_folders(data_dir, split)])
    classes = {key: class_folders(root) for key, root in roots.items()}
    all_of = "train" if "train" in classes else split
    wanted = NUM_CLASSES.get(name, max(1, len(classes[all_of])))
    problems = []
    if len(classes[all_of]) != wanted:
        problems.append(
            f"{roots[all_of]} has {len(classes[all_of])} class folders; {name!r} has {wanted}. "
            "Add the missing ones; a set of your own is --config.data.name=folder."
        )
    problems += [
        f"{roots[key]} has no class folder. Put the {key} images there, one folder per class, or remove it."
        for key, names in classes.items()
        if key != all_of and not names
    ]
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
