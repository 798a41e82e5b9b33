"""coco.py: what a file of annotations becomes, and what is wrong with one is told with file and number."""

import copy
import json

import data_sets
import numpy as np
import pytest

from resnext_jax.detection import coco, results
from resnext_jax.errors import UserError


def read(tmp_path, *contents, texts=()):
    paths = []
    for place, own in enumerate([*(json.dumps(own) for own in contents), *texts]):
        path = tmp_path / f"{place}.json"
        path.write_text(own)
        paths.append((str(path), ""))
    return coco.read_annotations(paths)


def failure(tmp_path, *contents, texts=()) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, *contents, texts=texts)
    return str(caught.value)


@pytest.fixture
def own():
    return data_sets.content()


def test_classes_are_in_the_order_of_their_ids_not_of_the_file(tmp_path, own):
    data = read(tmp_path, own)
    assert (data.class_names, data.class_ids.tolist()) == (("ant", "zebra"), [3, 7])
    # of image 1: zebra; of image 2: zebra, ant; and so on
    assert data.annotations.label.tolist() == [2, 2, 1, 2, 2, 1]
    assert data.annotations.image.tolist() == [1, 2, 2, 4, 5, 5]


def test_images_are_in_the_order_of_their_ids(tmp_path, own):
    own["images"].reverse()
    data = read(tmp_path, own)
    assert data.image_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert data.files[1] == "train/0001.png"
    assert data.size_px[1].tolist() == [64, 48]
    np.testing.assert_array_equal(data.annotations.boxes[0], [2, 3, 10, 8])


def test_two_files_are_joined(tmp_path, own):
    other = data_sets.content(first_id=101, folder="more")
    data = read(tmp_path, other, own)
    assert len(data) == 12
    assert data.annotations.image.tolist() == [1, 2, 2, 4, 5, 5, 7, 8, 8, 10, 11, 11]
    assert data.files[6:8] == ("more/0000.png", "more/0001.png")


def test_area_and_crowd_may_be_missing(tmp_path, own):
    del own["annotations"][0]["area"], own["annotations"][0]["iscrowd"]
    own["annotations"][1].update(iscrowd=1, area=7.5, segmentation={"counts": [1], "size": [2, 2]})
    annotations = read(tmp_path, own).annotations
    assert annotations.area[:2].tolist() == [80, 7.5]
    assert annotations.crowd[:2].tolist() == [False, True]


def test_writing_gives_back_what_was_read(tmp_path, own):
    own["annotations"][0]["id"] = 0
    data = read(tmp_path, own)
    assert 0 in data.annotations.id
    again = read(tmp_path, json.loads(json.dumps(results.to_coco(data))))
    for name, column in vars(data.annotations).items():
        np.testing.assert_array_equal(getattr(again.annotations, name), column)
    assert (again.files, again.class_names) == (data.files, data.class_names)
    np.testing.assert_array_equal(again.size_px, data.size_px)


def test_empty_and_outside_boxes_are_counted_and_the_first_told(tmp_path, own):
    boxes = [[2, 3, 0, 8], [2, 3, 10, -1], [-20, 3, 10, 8], [48, 3, 10, 8], [-5, -5, 10, 8], [47.5, 63, 90, 90]]
    for annotation, box in zip(own["annotations"], boxes, strict=True):
        annotation["bbox"], annotation["image_id"] = box, 2  # 48 x 64 px
    data = read(tmp_path, own)
    assert len(data.annotations) == 6  # the evaluation counts them
    [note] = data.notes
    assert "4 of 6 boxes are empty or outside of their image; training leaves them out" in note
    assert "annotation 1000 of train/0001.png (48 x 64 px): [2.0, 3.0, 0.0, 8.0]" in note


def test_some_images_alone_keep_their_boxes(tmp_path, own):
    part = coco.subset(read(tmp_path, own), np.array([0, 2, 4]))
    assert (part.image_ids.tolist(), part.files[1]) == ([1, 3, 5], "train/0002.png")
    assert part.annotations.image.tolist() == [1, 1, 2]
    assert part.annotations.label.tolist() == [2, 1, 2]
    assert "3 of 6 images are left out" in part.notes[-1]


def test_a_truncated_json_is_told(tmp_path, own):
    message = failure(tmp_path, texts=[json.dumps(own)[:300]])
    assert "0.json is not complete JSON" in message
    assert "copy or write it again" in message


@pytest.mark.parametrize("text", ["[]", '{"images": [], "annotations": 3}', "7"])
def test_other_json_is_told(tmp_path, text):
    assert "has no list" in failure(tmp_path, texts=[text])


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json could not be read: No such file"):
        coco.read_annotations([(str(tmp_path / "absent.json"), "")])


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_without_images_boxes_or_classes_nothing_opens(tmp_path, own, name):
    own[name] = []
    wanted = {"categories": "classes"}.get(name, name)
    assert f"there are no {wanted}" in failure(tmp_path, own)


def test_empty_lists_are_told_together(tmp_path):
    message = failure(tmp_path, {"images": [], "annotations": [], "categories": []})
    assert message.count("there are no") == 3


def test_unknown_ids_are_told_with_their_annotation(tmp_path, own):
    own["annotations"][0]["image_id"] = 99
    own["annotations"][3]["category_id"] = 1
    own["annotations"][4]["category_id"] = 2
    message = failure(tmp_path, own)
    assert "unknown image_id: 1; the first is annotation 1000 with 99. Known are 6 ids from 1 to 6." in message
    assert "unknown category_id: 2; the first is annotation 1003 with 1. Known are 2 ids from 3 to 7." in message


def test_duplicate_ids_are_told(tmp_path, own):
    own["images"].append(copy.deepcopy(own["images"][2]))
    own["categories"].append({"id": 7, "name": "horse"})
    own["annotations"][1]["id"] = own["annotations"][0]["id"]
    message = failure(tmp_path, own)
    for what, first in (("images", 3), ("classes", 7), ("annotations", 1000)):
        assert f"1 id(s) of {what} come more than once, the first {first}" in message


def test_a_class_name_that_comes_twice_is_told(tmp_path, own):
    own["categories"][1]["name"] = "zebra"
    assert "1 class name(s) come more than once" in failure(tmp_path, own)


def test_files_of_one_split_have_equal_classes(tmp_path, own):
    other = data_sets.content(first_id=101)
    other["categories"][0]["name"] = "horse"
    assert "1.json has other classes than" in failure(tmp_path, own, other)


WRONG = [
    ("images", "id", "1", "id must be a whole number"),
    ("images", "height", 0, "height and width must be 1 or more"),
    ("images", "file_name", None, "file_name must be a text"),
    ("annotations", "bbox", [1, 2, 3], "bbox must be x, y, width and height"),
    ("annotations", "bbox", [1, 2, 3, float("nan")], "bbox must be four numbers of pixels"),
    ("annotations", "bbox", [1, 2, 3, "x"], "could not convert string to float"),
    ("annotations", "area", float("inf"), "area must be a number"),
    ("annotations", "id", True, "id must be a whole number"),
    ("annotations", "image_id", 1.5, "image_id must be a whole number"),
    ("categories", "name", 3, "name must be a text"),
]


@pytest.mark.parametrize(("name", "field", "value", "reason"), WRONG)
def test_a_wrong_field_is_told(tmp_path, own, name, field, value, reason):
    own[name][1][field] = value
    message = failure(tmp_path, own)
    assert "are not as they should be; the first is number 1, " in message
    assert reason in message


@pytest.mark.parametrize(("name", "field"), [("images", "width"), ("annotations", "bbox"), ("categories", "id")])
def test_a_missing_field_is_told(tmp_path, own, name, field):
    del own[name][0][field]
    assert f"the field '{field}' is missing" in failure(tmp_path, own)


def test_problems_of_all_lists_come_together(tmp_path, own):
    own["images"][0]["width"] = own["categories"][0]["id"] = own["annotations"][0]["id"] = None
    message = failure(tmp_path, own)
    assert message.count("are not as they should be") == 3
    for what in ("1 image(s)", "1 class(es)", "1 annotation(s)"):
        assert what in message
