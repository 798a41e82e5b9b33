"""voc.py: VOC's XML becomes annotations in COCO's format."""

import json
import os

import data_sets
import numpy as np
import pytest
from PIL import Image

from resnext_jax.detection import prepare, sources, voc
from resnext_jax.errors import UserError


def xml(name: str, size: tuple[int, int], *objects: tuple) -> str:
    height, width = size
    inner = "".join(
        f"<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>"
        f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for kind, difficult, box in objects
    )
    return (
        f"<annotation><filename>{name}</filename><size><width>{width}</width><height>{height}</height>"
        f"<depth>3</depth></size>{inner}</annotation>"
    )


@pytest.fixture
def devkit(tmp_path):
    """VOC2007 with three images, of which two are of trainval; sizes of image 3 are 0 in the XML."""
    root = tmp_path / "VOC2007"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name in ("000001", "000002", "000003"):
        Image.fromarray(data_sets.pixels(48, 64, 0)).save(root / f"JPEGImages/{name}.jpg")
    texts = {
        "000001": xml("000001.jpg", (48, 64), ("dog", 0, (1, 1, 64, 48)), ("cat", 1, (10, 20, 19, 29))),
        "000002": xml("000002.jpg", (48, 64)),
        "000003": xml("000003.jpg", (0, 0), ("bird", 0, (5.5, 6, 10.5, 8))),
    }
    for name, text in texts.items():
        (root / f"Annotations/{name}.xml").write_text(text)
    (root / "ImageSets/Main/trainval.txt").write_text("000001\n000002 -1\n")
    (root / "ImageSets/Main/test.txt").write_text("000003\n")
    return tmp_path


SETS = {"train": ["VOC2007/trainval"], "validation": ["VOC2007/test"]}


def test_boxes_begin_at_0_and_have_width_and_height(devkit):
    content = voc.convert(str(devkit), SETS)
    assert [own["name"] for own in content["train"]["categories"]] == ["bird", "cat", "dog"]
    assert content["train"]["categories"] == content["validation"]["categories"]
    first, second = content["train"]["annotations"]
    assert (first["bbox"], first["category_id"], first["image_id"], first["area"]) == ([0, 0, 64, 48], 3, 1, 3072)
    assert (second["bbox"], second["category_id"]) == ([9, 19, 10, 10], 2)
    assert content["validation"]["annotations"][0]["bbox"] == [4.5, 5, 6, 3]


def test_difficult_objects_become_crowds(devkit):
    annotations = voc.convert(str(devkit), SETS)["train"]["annotations"]
    assert [own["iscrowd"] for own in annotations] == [0, 1]


def test_a_size_of_0_is_read_from_the_image(devkit):
    [image] = voc.convert(str(devkit), SETS)["validation"]["images"]
    assert (image["height"], image["width"]) == (48, 64)
    assert image["file_name"] == os.path.join("VOC2007", "JPEGImages", "000003.jpg")


def test_the_command_writes_what_training_opens(devkit, capsys):
    arguments = ["voc", f"--dir={devkit}", "--train", *SETS["train"], "--validation", *SETS["validation"]]
    assert prepare.main(arguments) == 0
    output = capsys.readouterr().out
    assert "train.json: 2 images, 3 classes, 2 boxes; the 1 difficult ones became crowds" in output
    source = sources.open_source(str(devkit), "train")
    assert (len(source), source.data.class_names) == (2, ("bird", "cat", "dog"))
    np.testing.assert_array_equal(source.data.annotations.image, [0, 0])  # an image without objects stays


def test_a_folder_of_xml_beside_its_images_is_a_set(tmp_path):
    Image.fromarray(data_sets.pixels(48, 64, 0)).save(tmp_path / "tree.png")
    (tmp_path / "tree.xml").write_text(xml("other.tif", (48, 64), ("Tree", 0, (1, 1, 5, 5))))
    content = voc.convert(str(tmp_path), {"train": ["."]})
    assert content["train"]["images"][0]["file_name"] == "tree.png"


def test_all_wrong_files_are_told_together(devkit):
    root = devkit / "VOC2007"
    (root / "Annotations/000001.xml").write_text("<annotation><object>")
    (root / "Annotations/000002.xml").write_text(xml("000002.jpg", (48, 64), ("dog", 0, ("x", 1, 2, 3))))
    (root / "Annotations/000003.xml").unlink()
    with pytest.raises(UserError) as caught:
        voc.convert(str(devkit), SETS)
    first, second, third = caught.value.problems
    assert "000001.xml is not an annotation of VOC" in first
    assert "000002.xml is not an annotation of VOC (could not convert string to float" in second
    assert "000003.xml could not be read" in third


def test_a_missing_image_is_told(devkit):
    (devkit / "VOC2007/JPEGImages/000002.jpg").unlink()
    with pytest.raises(UserError, match=r"000002\.xml is not an annotation of VOC \(its image .* is in none of"):
        voc.convert(str(devkit), SETS)


def test_an_object_without_a_box_is_told(devkit):
    text = "<annotation><object><name>dog</name></object></annotation>"
    (devkit / "VOC2007/Annotations/000002.xml").write_text(text)
    with pytest.raises(UserError, match="an object 'dog' has no bndbox"):
        voc.convert(str(devkit), SETS)


def test_files_without_any_object_are_told(devkit):
    (devkit / "VOC2007/ImageSets/Main/trainval.txt").write_text("000002\n")
    with pytest.raises(UserError, match="none of the XML files has an object"):
        voc.convert(str(devkit), {"train": SETS["train"]})


def test_an_unknown_set_is_told(devkit, capsys):
    assert prepare.main(["voc", f"--dir={devkit}", "--train", "VOC2012/trainval"]) == 2
    assert "there is neither" in capsys.readouterr().err


def test_no_set_at_all_is_told(devkit, capsys):
    assert prepare.main(["voc", f"--dir={devkit}"]) == 2
    assert json.dumps("give the sets")[1:-1] in capsys.readouterr().err
