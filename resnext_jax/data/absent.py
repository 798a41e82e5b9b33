"""The message for a missing data set: the places that were searched, and the ways to prepare it."""

import importlib.util
import os
from collections.abc import Sequence

from etils import epath

from resnext_jax.errors import THIS_COMMAND, UserError

COMMAND = "python -m resnext_jax.data.prepare"
# TFDS's command line imports all of these, whatever it is asked to do.
TFDS_INSTALL = "pip install tensorflow tensorflow-datasets apache-beam mlcroissant importlib_resources"
_TFDS_BUILD = (
    "with TFDS, in an environment of its own (only this step needs TensorFlow):",
    TFDS_INSTALL,
    "tfds build {name} --file_format=array_record --data_dir=DIR",
)
_OF_OWN = (
    "as records, from class folders FROM/train/<class>/* and FROM/validation/<class>/*:",
    f"{COMMAND} folder --dir=FROM --out=DIR",
)
_FOLDERS = ("as files DIR/train/<class>/*.JPEG and DIR/validation/<class>/*.JPEG (also DIR/val; also .png and others)",)
# data set -> ways to prepare it, each a sentence and the commands
PREPARE: dict[str, tuple[tuple[str, ...], ...]] = {
    "cifar10": (_TFDS_BUILD,),
    "cifar100": (_TFDS_BUILD,),
    "fashion_mnist": (("on Debian or Ubuntu:", "apt-get install dataset-fashion-mnist"), _TFDS_BUILD),
    "folder": (_FOLDERS, _OF_OWN),
    "imagenet2012": (
        (
            "as records, from the two archives of https://image-net.org; interrupted, it goes on where it was:",
            f"{COMMAND} imagenet2012 --train_tar=ILSVRC2012_img_train.tar --val_tar=ILSVRC2012_img_val.tar --out=DIR",
        ),
        _FOLDERS,
        (
            "with TFDS: put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (https://image-net.org) into a folder "
            "TARS, then, in an environment of its own (only this step needs TensorFlow):",
            TFDS_INSTALL,
            "tfds build imagenet2012 --file_format=array_record --data_dir=DIR --manual_dir=TARS",
        ),
    ),
    "imagenet5k": (
        (
            "as records, from the 22K archive (or a folder of its class tars) and ILSVRC2012's validation archive:",
            f"{COMMAND} imagenet5k --full=fall11_whole.tar --val_tar=ILSVRC2012_img_val.tar --out=DIR",
        ),
        (f"{_FOLDERS[0]}; validation may have 1000 of the 5000 classes",),
    ),
    "imagenet_v2": (tuple(line.replace("{name}", "imagenet_v2/matched-frequency") for line in _TFDS_BUILD),),
    "records": (_OF_OWN,),
}


def bucket_problems(*paths: str | None) -> list[str]:
    """Return what to install if one of `paths` is in a bucket and no package can open it."""
    found = next((path for path in paths if path and path.startswith("gs://")), None)
    if found is None or any(importlib.util.find_spec(package) for package in ("gcsfs", "tensorflow")):
        return []
    return [f"{found} is in a bucket, which gcsfs reads and writes, and it is not installed: pip install gcsfs"]


def other_folders(data_dir: str) -> str:
    """Return a sentence about the folders in `data_dir` that are no splits; an empty string if there is none."""
    try:
        names = sorted(path.name for path in epath.Path(data_dir).iterdir() if path.is_dir())
    except OSError:
        return ""
    others = [name for name in names if name not in ("train", "validation", "val") and not name.startswith(".")]
    if not others:
        return ""
    listed = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
    return (
        f"{data_dir} has {len(others):,} other folder(s): {listed}. If they are the classes, move them into "
        f"{os.path.join(data_dir, 'train')}/, and some images of each class into "
        f"{os.path.join(data_dir, 'validation')}/<class>/; if they are the splits, rename them."
    )


def absent(name: str, split: str, places: Sequence[str], data_dir: str | None = None) -> UserError:
    """Return the error for a data set that is in none of `places`.

    Args:
      data_dir: directory for class folders that was searched; the message tells what else is there.
    """
    lines = [f"data set {name!r} ({split} split) was not found. Looked for:", *(f"  - {place}" for place in places)]
    if data_dir and _FOLDERS[0] in "".join(way[0] for way in PREPARE[name]) and (text := other_folders(data_dir)):
        lines.append(text)
    lines.append("Prepare it in one of these ways, then add --config.data.dir=DIR:")
    for sentence, *commands in PREPARE[name]:
        lines += [f"  - {sentence}", *(f"      {command.format(name=name)}" for command in commands)]
    lines += ["Or run without it, on synthetic images:"]
    lines += [f"      {THIS_COMMAND} --config.data.name=synthetic"]
    return UserError("\n".join(lines))
