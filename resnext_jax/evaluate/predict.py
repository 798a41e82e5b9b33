"""Predictions for single images: the most probable classes of files, folders and patterns."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Array, Float

from resnext_jax.data import decode
from resnext_jax.data.absent import bucket_problems
from resnext_jax.data.listing import IMAGE_SUFFIXES, find_images, left_out_text
from resnext_jax.errors import UserError, raise_all
from resnext_jax.evaluate.report import csv_text, number, top_columns
from resnext_jax.files import replace_file

BATCH_SIZE = 32
Path = str | os.PathLike


class Prediction(NamedTuple):
    """A class and its probability."""

    name: str
    probability: float


def predict(
    images: Path | np.ndarray | Sequence[Path | np.ndarray],
    *,
    top: int,
    preprocess: Callable[[np.ndarray], np.ndarray],
    logits_of: Callable[[np.ndarray], Array],
    class_names: Sequence[str],
) -> list[list[Prediction]]:
    """Return the most probable classes of each image, the first one first; see `api.Net.predict`."""
    if isinstance(images, str | os.PathLike) or (isinstance(images, np.ndarray) and images.ndim < 4):
        listed = [images]
    else:
        listed = list(images)
    raise_all([f"top={top} must be 1 or more."] if top < 1 else [])
    found = []
    for part in _parts(listed):
        rows = [preprocess(decode.read_image(one) if isinstance(one, Path) else one) for one in part]
        # Each number of images is another program: there are only powers of two.
        padding = [np.zeros_like(rows[0])] * ((1 << (len(rows) - 1).bit_length()) - len(rows))
        logits = np.asarray(logits_of(np.concatenate(rows + padding)))[: len(rows)]
        found += most_probable(logits, class_names, top)
    return found


def _parts(listed: list) -> Iterator[list]:
    return (listed[start : start + BATCH_SIZE] for start in range(0, len(listed), BATCH_SIZE))


def most_probable(
    logits: Float[np.ndarray, "batch classes"], class_names: Sequence[str], top: int
) -> list[list[Prediction]]:
    """Return the classes of largest softmax of each row; of equal ones the first in label order."""
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        [Prediction(class_names[int(label)], float(row[label])) for label in labels]
        for row, labels in zip(probabilities, order.tolist(), strict=True)
    ]


def readable_images(arguments: Sequence[str]) -> list[str]:
    """Return the paths of the images that files, folders and patterns name, each path once, all of them readable.

    A folder stands for the images in it and in its sub-folders; other files there are counted, and the first are named.

    Raises:
      UserError: nothing is found for an argument, or files are no images (all are named).
    """
    paths: dict[str, None] = {}
    others: list[str] = []
    problems = []
    for argument in arguments:
        if "://" in argument:
            problems.append(
                f"{argument} is a URL, and predict reads files: download it, and give the path of the file."
            )
            continue
        matches = [argument]
        if not os.path.lexists(argument) and glob.has_magic(argument):
            matches = sorted(glob.glob(argument, recursive=True))
        found = [path for match in matches for path in (_of_folder(match, others) if os.path.isdir(match) else [match])]
        if not found:
            what = "is a folder without an image" if os.path.isdir(argument) else "matches no image"
            problems.append(f"{argument} {what} ({', '.join(IMAGE_SUFFIXES)}). Give images, folders or patterns.")
        paths |= dict.fromkeys(found)
    if others:
        print(f"{len(paths):,} images{left_out_text(others)}")
    for path in paths:
        try:
            with open(path, "rb") as file:
                decode.check(file.read(), path)
        except OSError as error:
            problems.append(f"{path} could not be read: {error.strerror}. Give the path of a JPEG or PNG file.")
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    return list(paths)


def _of_folder(folder: str, left_out: list[str]) -> list[str]:
    """Return the images below a folder, sorted, and add its other files to `left_out`."""
    found = find_images(folder)
    left_out += [os.path.join(folder, path) for path in found.left_out]
    return [os.path.join(folder, path) for path in found.images]


def new_file(path: str) -> epath.Path:
    """Return the path of a file that is not there; raises UserError if it is, or if its directory is not."""
    raise_all(bucket_problems(path))
    file = epath.Path(path).expanduser()
    if file.exists():
        raise UserError(f"{file} is there already, and is not overwritten. Give another --csv=FILE, or move it away.")
    if "://" not in path and not (file.parent.is_dir() and os.access(file.parent, os.W_OK | os.X_OK)):
        raise UserError(
            f"{file} cannot be written: {file.parent} is no directory that can be. Give another --csv=FILE."
        )
    return file


def predict_files(
    predict_paths: Callable[[list[str]], list[list[Prediction]]], paths: Sequence[str], csv_file: epath.Path | None
) -> list[dict[str, Any]]:
    """Print the most probable classes of each image, write them to a table, and return them.

    Args:
      predict_paths: `api.Net.predict`.
      paths: images.
      csv_file: written when all are done; None for no table.
    """
    results = []
    for part in _parts(list(paths)):
        for path, predictions in zip(part, predict_paths(part), strict=True):
            print(path)
            for name, probability in predictions:
                print(f"  {probability:7.2%}  {name}")
            listed = [{"class": name, "probability": probability} for name, probability in predictions]
            results.append({"image": path, "predictions": listed})
    if csv_file is not None:
        write_table(csv_file, results)
    return results


def write_table(file: epath.Path, results: Sequence[dict[str, Any]]) -> None:
    """Write the CSV table of `predict_files`."""
    header = ["image", *top_columns(len(results[0]["predictions"]))]

    def fields(predictions: Iterable[dict[str, Any]]) -> list[str]:
        return [field for one in predictions for field in (one["class"], number(one["probability"]))]

    try:
        replace_file(file, csv_text(header, ([one["image"], *fields(one["predictions"])] for one in results)))
    except OSError as error:
        raise UserError(f"{file} could not be written ({error.strerror or error}). Give another --csv=FILE.") from None
    print(f"{len(results):,} images: {file}")
