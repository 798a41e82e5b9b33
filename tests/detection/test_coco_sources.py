"""sources.py: layouts, images that are missing or differ from the annotations, splits with common images."""

import dataclasses
import json
import shutil

import data_sets
import numpy as np
import pytest
from PIL import Image

from resnext_jax.detection import sources
from resnext_jax.detection.types import DetectionData
from resnext_jax.errors import UserError


@pytest.fixture
def own(tmp_path):
    return data_sets.write(tmp_path, "annotations/train.json", data_sets.content())


def coco2017(directory):
    """Six images for training, four for validation, named as COCO's."""
    for split, num_images, first_id in (("train", 6, 1), ("val", 4, 11)):
        content = data_sets.content(num_images, first_id, folder="")
        for image in content["images"]:
            image["file_name"] = f"{image['id']:012}.png"
        data_sets.write(directory, f"annotations/instances_{split}2017.json", content, f"{split}2017")
    return directory


def as_coco2014(directory, target):
    """The same images in the layout of 2014: two of training and all of validation are in val2014."""
    target.joinpath("annotations").mkdir(parents=True)
    for name, parts in (("train", ("train", "valminusminival")), ("val", ("minival",))):
        content = json.loads((directory / f"annotations/instances_{name}2017.json").read_text())
        for part in parts:
            folder = "train2014" if part == "train" else "val2014"
            images = [dict(image) for image in content["images"]]
            if name == "train":
                images = [image for image in images if (image["id"] in (2, 5)) == (part != "train")]
            for image in images:
                old, image["file_name"] = image["file_name"], f"COCO_{folder}_{image['file_name']}"
                (target / folder).mkdir(exist_ok=True)
                shutil.copy(directory / f"{name}2017" / old, target / folder / image["file_name"])
            ids = {image["id"] for image in images}
            boxes = [box for box in content["annotations"] if box["image_id"] in ids]
            own = content | {"images": images, "annotations": boxes}
            (target / f"annotations/instances_{part}2014.json").write_text(json.dumps(own))
    return target


def assert_equal(one: DetectionData, other: DetectionData):
    np.testing.assert_array_equal(one.image_ids, other.image_ids)
    np.testing.assert_array_equal(one.size_px, other.size_px)
    for name, column in vars(one.annotations).items():
        np.testing.assert_array_equal(getattr(other.annotations, name), column)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_coco_2014_and_2017_are_the_same_data(tmp_path, split):
    new = coco2017(tmp_path / "2017")
    old = as_coco2014(new, tmp_path / "2014")
    assert (sources.find_layout(str(new), split), sources.find_layout(str(old), split)) == ("coco2017", "coco2014")
    one, other = (sources.open_source(str(directory), split) for directory in (new, old))
    assert_equal(one.data, other.data)
    for index in range(len(one)):
        assert one[index].image == other[index].image
    assert "COCO_val2014_" in " ".join(other.data.files)


def test_another_number_of_images_than_cocos_is_said(tmp_path):
    data = sources.open_source(str(coco2017(tmp_path)), "validation").data
    assert "validation has 4 images, and COCO's has 5,000" in data.notes[-1]


def test_records_have_file_index_and_path(own):
    source = sources.open_source(str(own), "train")
    record = source[3]
    assert record.label == 3
    assert record.name == source.locate(3) == str(own / "train/0003.png")
    assert source.all_labels().tolist() == list(range(6))
    assert (source.info.num_images, source.info.class_names) == (6, ("ant", "zebra"))


def test_any_file_of_annotations_can_be_named(tmp_path):
    data_sets.write(tmp_path, "x.json", data_sets.content(folder=""), "pictures")
    source = sources.open_source(str(tmp_path / "pictures"), "train", annotations=str(tmp_path / "x.json"))
    assert source[0].name == str(tmp_path / "pictures/0000.png")


def test_missing_annotations_are_told_with_every_place(tmp_path):
    with pytest.raises(UserError) as caught:
        sources.open_source(str(tmp_path), "train")
    for path in ("instances_train2017.json", "instances_valminusminival2014.json", "annotations/train.json"):
        assert path in str(caught.value)
    assert "--config.data.dir" in str(caught.value)


def test_an_unknown_split_is_told(own):
    with pytest.raises(UserError, match=r"unknown split 'test'. Known: train, validation"):
        sources.open_source(str(own), "test")


def test_missing_images_are_counted_and_named(own):
    (own / "train/0001.png").unlink()
    (own / "train/0004.png").unlink()
    with pytest.raises(UserError, match=r"2 of 6 images of the annotations are missing: train/0001\.png, train/0004"):
        sources.open_source(str(own), "train")


def test_missing_and_wrong_images_come_together(own):
    (own / "train/0001.png").unlink()
    Image.new("RGB", (9, 9)).save(own / "train/0000.png")
    with pytest.raises(UserError) as caught:
        sources.open_source(str(own), "train")
    first, second = caught.value.problems
    assert "1 of 6 images of the annotations are missing" in first
    assert "0000.png has 9 x 9 pixels" in second


def test_a_missing_folder_of_images_is_told(own):
    shutil.rmtree(own / "train")
    with pytest.raises(UserError, match="6 of 6 images of the annotations are missing"):
        sources.open_source(str(own), "train")


def test_a_turned_image_is_told_with_both_sizes(own):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: shown as 48 x 64
    Image.new("RGB", (64, 48)).save(own / "train/0001.png", "JPEG", exif=exif)
    with pytest.raises(UserError) as caught:
        sources.open_source(str(own), "train")
    message = str(caught.value)
    assert "0001.png has 64 x 48 pixels, and the annotations say 48 x 64. Its EXIF orientation was applied" in message
    assert len(sources.open_source(str(own), "train", check_sizes=False)) == 6


def test_other_sizes_and_broken_images_come_together(own):
    Image.new("RGB", (9, 9)).save(own / "train/0000.png")
    for number in (2, 3, 4):
        (own / f"train/{number:04}.png").write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        sources.open_source(str(own), "train")
    first, second, third, more = caught.value.problems
    assert "0000.png has 9 x 9 pixels, and the annotations say 64 x 48. Take the image that was annotated" in first
    assert "0002.png is not a readable image" in second
    assert "0003.png is not a readable image" in third
    assert "1 more images are wrong" in more


def test_common_images_of_both_splits_are_told_at_coco(tmp_path):
    directory = str(coco2017(tmp_path))
    train, validation = (sources.open_source(directory, split).data for split in ("train", "validation"))
    sources.require_apart(train, validation)
    part = dataclasses.replace(validation, image_ids=train.image_ids[2:], files=train.files[2:])
    with pytest.raises(UserError, match=r"4 images are in training and in validation, the first id 3"):
        sources.require_apart(train, dataclasses.replace(part, files=tuple(f"other/{name}" for name in part.files)))


def test_own_sets_may_count_from_1_in_both_splits(tmp_path):
    data_sets.write(tmp_path, "annotations/train.json", data_sets.content())
    data_sets.write(tmp_path, "annotations/validation.json", data_sets.content(folder="validation"))
    train, validation = (sources.open_source(str(tmp_path), split).data for split in ("train", "validation"))
    sources.require_apart(train, validation)
    with pytest.raises(UserError, match=r"6 images are in training and in validation, the first train/0000"):
        sources.require_apart(train, train)
