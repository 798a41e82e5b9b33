"""Convert boxes in Pascal VOC's XML to COCO's format.

A file has one `annotation` with `filename`, `size` and any number of `object`s: `name`, `bndbox` (xmin, ymin, xmax,
ymax from 1 on, both ends included) and perhaps `difficult`. VOC's evaluation ignores difficult objects; here they
become crowds, which COCO's evaluation ignores, and training never takes them.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from etils import epath

from resnext_jax.data import decode
from resnext_jax.data.listing import is_image, list_names
from resnext_jax.errors import UserError, raise_all

MOST_NAMED = 5
IMAGE_FOLDERS = ("JPEGImages", "images")  # beside the folder of the annotations


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]  # x, y, width, height, from 0 on
    difficult: bool


class _Picture(NamedTuple):
    file: str  # relative to the directory
    height: int
    width: int
    objects: list[_Object]


def convert(directory: str, sets: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Return the content of a file of annotations for each split; all have the same classes, sorted by name.

    Args:
      directory: directory to which `sets` and the names of images are relative.
      sets: for each split its sets: `VOC2007/trainval` for the images listed in VOC2007/ImageSets/Main/trainval.txt, or
        a folder of XML files.

    Raises:
      UserError: with all problems: files that are missing or no such XML, images that are missing, no object at all.
    """
    problems: list[str] = []
    pictures: dict[str, list[_Picture]] = {}
    for split, names in sets.items():
        pictures[split] = []
        for path in (path for name in names for path in _xml_files(directory, name)):
            try:
                pictures[split].append(_picture(path, directory))
            except UserError as error:
                problems += error.problems
    if len(problems) > MOST_NAMED:
        problems[MOST_NAMED:] = [f"{len(problems) - MOST_NAMED:,} more files of {directory} are wrong in such a way."]
    raise_all(problems)
    classes = sorted({own.name for split in pictures.values() for picture in split for own in picture.objects})
    if not classes:
        raise UserError(f"{directory}: none of the XML files has an object. Give files with boxes.")
    return {split: _content(own, classes) for split, own in pictures.items()}


def _content(pictures: Sequence[_Picture], classes: Sequence[str]) -> dict[str, Any]:
    place = {name: number for number, name in enumerate(classes, 1)}
    objects = [(number, own) for number, picture in enumerate(pictures, 1) for own in picture.objects]
    return {
        "images": [
            {"id": number, "file_name": picture.file, "height": picture.height, "width": picture.width}
            for number, picture in enumerate(pictures, 1)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": place[own.name],
                "bbox": list(own.box),
                "area": own.box[2] * own.box[3],
                "iscrowd": int(own.difficult),
            }
            for number, (image, own) in enumerate(objects, 1)
        ],
        "categories": [{"id": number, "name": name} for name, number in place.items()],
    }


def _xml_files(directory: str, name: str) -> list[str]:
    year, _, listed = name.rpartition("/")
    names = epath.Path(directory, year, "ImageSets", "Main", f"{listed}.txt")
    if names.exists():
        stems = [line.split()[0] for line in names.read_text().splitlines() if line.strip()]
        return [os.path.join(directory, year, "Annotations", f"{stem}.xml") for stem in stems]
    folder = os.path.join(directory, name)
    found = (
        [file for file in list_names(folder) if file.lower().endswith(".xml")] if epath.Path(folder).is_dir() else []
    )
    if not found:
        raise UserError(f"there is neither {names} nor a folder {folder} with XML files. Give such a set.")
    return [os.path.join(folder, file) for file in found]


def _picture(path: str, directory: str) -> _Picture:
    """Return the content of an XML file; raises UserError if it is not as it should be."""
    try:
        root = ElementTree.fromstring(epath.Path(path).read_bytes())
        objects = [_object(own) for own in root.iter("object")]
        image = _image_of(path, root.findtext("filename") or "")
        height, width = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror or error}. Put it there.") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is not an annotation of VOC ({error}). Correct it.") from None
    if not height or not width:  # some tools write 0
        height, width = decode.size(epath.Path(image).read_bytes(), image)
    return _Picture(os.path.relpath(image, directory), height, width, objects)


def _object(own: ElementTree.Element) -> _Object:
    name = own.findtext("name")
    if not name:
        raise ValueError("an object has no name")
    left, top, right, bottom = (
        float(own.findtext(f"bndbox/{end}") or "nan") for end in ("xmin", "ymin", "xmax", "ymax")
    )
    if not all(math.isfinite(value) for value in (left, top, right, bottom)):
        raise ValueError(f"an object {name!r} has no bndbox of xmin, ymin, xmax and ymax")
    difficult = (own.findtext("difficult") or "0").strip() not in ("0", "")
    return _Object(name.strip(), (left - 1, top - 1, right - left + 1, bottom - top + 1), difficult)


def _image_of(path: str, filename: str) -> str:
    """Return the image of an XML file: `filename`, or the name of the XML file, beside it or in a usual folder."""
    folder, stem = os.path.dirname(path), os.path.splitext(os.path.basename(path))[0]
    folders = [folder, *(os.path.join(os.path.dirname(folder), name) for name in IMAGE_FOLDERS)]
    for place in folders:
        for name in (os.path.basename(filename), *(stem + suffix for suffix in (".jpg", ".jpeg", ".png"))):
            if is_image(name) and epath.Path(place, name).exists():
                return os.path.join(place, name)
    raise ValueError(f"its image {filename or stem!r} is in none of {', '.join(folders)}")
