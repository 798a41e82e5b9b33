"""Class folders of image files: DIR/train/<class>/*.JPEG and DIR/validation/<class>/*.JPEG."""

import os
from collections.abc import Sequence

import numpy as np
from etils import epath

from resnext_jax.data.absent import absent
from resnext_jax.data.listing import IMAGE_SUFFIXES, find_images, left_out_text, list_folders
from resnext_jax.data.readers import Labels, Record, Source
from resnext_jax.errors import UserError, raise_all
from resnext_jax.progress import say
from resnext_jax.types import DatasetInfo

USUAL = 3  # suffixes named first
MOST_LISTED = 5  # names or folders in a message
NUM_CLASSES = {"imagenet2012": 1000, "imagenet5k": 5000}
SPLITS = ("train", "validation")


class FolderSource:
    """Class folders of image files, `root/<class>/<file>`; within a class in the order of the files' names.

    Attributes:
      left_out: paths in `root` of the other files.

    Raises:
      UserError: class folders without an image.
    """

    def __init__(self, name: str, root: str, class_names: Sequence[str]):
        names, lengths, labels = [], [], []
        found, self.left_out = find_class_images(root, class_names)
        for label, images in found.items():
            files = [os.fsencode(file) for file in images]
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


def find_class_images(root: str, class_names: Sequence[str]) -> tuple[dict[int, list[str]], list[str]]:
    """Return the image files of each class folder in `root`, by label, and all other files.

    Raises:
      UserError: class folders without an image, or what cannot be read.
    """
    folders, loose = list_folders(root)
    # imagenet5k's validation split has 1000 of the 5000 classes.
    labels, images, empty, left_out = {name: label for label, name in enumerate(class_names)}, {}, [], list(loose)
    for name in sorted(labels.keys() & set(folders), key=labels.__getitem__):
        found = find_images(os.path.join(root, name))
        images[labels[name]] = found.images
        left_out += [f"{name}/{file}" for file in found.left_out]
        if not found.images:
            usual, others = (", ".join(part) for part in (IMAGE_SUFFIXES[:USUAL], IMAGE_SUFFIXES[USUAL:]))
            empty.append(
                f"{os.path.join(root, name)} has no image file ({usual}) or one of another format that is read "
                f"({others}){left_out_text(found.left_out)}. Every class needs one or more: add images, or remove the "
                "folder from every split."
            )
    more = [f"{len(empty) - MOST_LISTED:,} more class folders have none."] if len(empty) > MOST_LISTED else []
    raise_all(empty[:MOST_LISTED] + more)
    return images, left_out


def class_folders(root: str) -> list[str]:
    """Return the names of the folders in `root`, sorted."""
    return list_folders(root)[0]


def split_folders(data_dir: str | None, split: str) -> list[str]:
    """Return the possible folders of a split, the preferred one first."""
    folders = {"train": ("train",), "validation": ("validation", "val")}[split]
    return [os.path.join(data_dir or "DIR", folder) for folder in folders]


def split_roots(data_dir: str) -> dict[str, str]:
    """Return the folder of each split that `data_dir` has."""
    found = {key: [root for root in split_folders(data_dir, key) if epath.Path(root).is_dir()] for key in SPLITS}
    return {key: roots[0] for key, roots in found.items() if roots}


def class_problems(roots: dict[str, str], classes: dict[str, list[str]], *, fewer: bool = False) -> list[str]:
    """Return a sentence for every split that lacks classes of the other one, or has none.

    Args:
      roots: folder of each split.
      classes: class folders of each split.
      fewer: whether validation may lack classes.
    """
    problems = [
        f"{roots[key]} has no class folder. Put the {key} images there, one folder per class, or remove it."
        for key, names in classes.items()
        if not names
    ]
    for key, other in (("validation", "train"), ("train", "validation")):
        only = sorted(set(classes.get(key, ())) - set(classes.get(other, classes.get(key, ()))))
        if only and classes[other] and not (fewer and key == "train"):
            listed = ", ".join(only[:MOST_LISTED]) + (", ..." if len(only) > MOST_LISTED else "")
            problems.append(
                f"{len(only)} class folder(s) of {roots[key]} are not in {roots[other]}: {listed}. "
                "Both splits must have the same classes: add or remove folders."
            )
    return problems


def open_folder(name: str, split: str, data_dir: str | None, **_) -> Source:
    roots = split_roots(data_dir) if data_dir else {}
    if split not in roots:
        unset = "" if data_dir else ", by --config.data.dir=DIR, which is not set"
        raise absent(name, split, [folder + unset for folder in split_folders(data_dir, split)], data_dir)
    classes = {key: class_folders(root) for key, root in roots.items()}
    all_of = "train" if "train" in classes else split
    wanted = NUM_CLASSES.get(name, max(1, len(classes[all_of])))
    problems = []
    if len(classes[all_of]) != wanted:
        problems.append(
            f"{roots[all_of]} has {len(classes[all_of])} class folders; {name!r} has {wanted}. "
            "Add the missing ones; a set of your own is --config.data.name=folder."
        )
    # imagenet5k is validated on ImageNet-1K, whose classes are 1000 of its 5000.
    problems += class_problems(roots, classes, fewer=name == "imagenet5k")
    raise_all(problems)
    source = FolderSource(name, roots[split], classes[all_of])
    say(f"{roots[split]}: {len(source):,} images in {len(classes[split]):,} classes{left_out_text(source.left_out)}")
    return source
