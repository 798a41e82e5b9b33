"""results.py: arrays of a network as detections, and COCO's results JSON."""

import json
import sys

import data_sets
import numpy as np
import pytest

from resnext_jax.detection import results
from resnext_jax.errors import UserError

DATA = data_sets.in_memory([{"box": [0, 0, 5, 5]}], num_images=3, num_classes=2)  # image ids 5 15 25, classes 2 5


def test_corners_become_boxes_of_the_taken_rows():
    corners = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    score = np.array([[0.9, 0.5, 0.1], [0.8, 0.2, 0.1]], np.float32)
    label = np.array([[1, 2, 0], [2, 0, 0]], np.int32)
    taken = np.array([[True, True, False], [False, False, False]])
    found = results.from_corners(corners, score, label, np.array([2, 0], np.int32), taken)
    assert (found.image.tolist(), found.label.tolist()) == ([2, 2], [1, 2])
    assert found.boxes.tolist() == [[0, 1, 3, 3], [4, 5, 3, 3]]
    np.testing.assert_array_equal(found.score, score[0, :2])


def test_detections_of_processes_are_joined():
    one, other = data_sets.detections((0.5, [1, 2, 3, 4])), data_sets.detections((0.9, [5, 6, 7, 8]), image=2)
    both = results.join([one, other])
    assert (both.image.tolist(), both.score.tolist(), len(both)) == ([0, 2], [0.5, 0.9], 2)
    assert len(results.join([])) == 0


def test_a_results_file_has_the_ids_of_the_file_and_every_digit(tmp_path):
    boxes = np.array([[0.1, 2, 3, 4]], np.float32)
    found = results.Detections(np.array([1]), np.array([2]), np.array([0.3], np.float32), boxes)
    results.write_results(tmp_path / "results.json", DATA, found)
    [entry] = json.loads((tmp_path / "results.json").read_text())
    tenth = float(np.float32(0.1))
    assert entry == {"image_id": 15, "category_id": 5, "bbox": [tenth, 2, 3, 4], "score": float(np.float32(0.3))}
    again = results.read_results(tmp_path / "results.json", DATA)
    assert (again.image.tolist(), again.label.tolist(), again.score.tolist()) == ([1], [2], [entry["score"]])
    assert again.boxes.tolist() == [entry["bbox"]]


def test_no_detections_are_a_results_file_too(tmp_path):
    results.write_results(tmp_path / "results.json", DATA, results.join([]))
    assert len(results.read_results(tmp_path / "results.json", DATA)) == 0


ENTRY = {"image_id": 15, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 0.5}


def failure(tmp_path, text: str) -> str:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError) as caught:
        results.read_results(tmp_path / "results.json", DATA)
    return str(caught.value)


def test_results_of_other_images_and_classes_are_told(tmp_path):
    entries = [ENTRY | {"image_id": 16}, ENTRY | {"image_id": 4}, ENTRY | {"category_id": 3}, ENTRY]
    message = failure(tmp_path, json.dumps(entries))
    assert "2 image id(s) that the data set does not have, the first 4 (it has 3, from 5 to 25)" in message
    assert "1 category id(s) that the data set does not have, the first 3 (it has 2, from 2 to 5)" in message


def test_truncated_results_are_told(tmp_path):
    assert "is not complete JSON" in failure(tmp_path, json.dumps([ENTRY])[:-3])


def test_annotations_are_no_results(tmp_path):
    assert "is not a list" in failure(tmp_path, json.dumps(data_sets.content()))


@pytest.mark.parametrize(
    "wrong", [{"bbox": [1, 2, 3]}, {"score": None}, {"bbox": [1, 2, 3, float("nan")]}, {"image_id": "15"}, 7]
)
def test_wrong_entries_are_counted_and_told(tmp_path, wrong):
    entry = ENTRY | wrong if isinstance(wrong, dict) else wrong
    assert "1 entries are not as they should be, the first number 1" in failure(tmp_path, json.dumps([ENTRY, entry]))


def test_a_missing_pycocotools_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match=r"pip install 'resnext_jax\[detection\]'"):
        results.evaluate_by_pycocotools(DATA, data_sets.detections((0.5, [1, 2, 3, 4])))


def test_pycocotools_without_detections_is_told():
    with pytest.raises(UserError, match="cannot evaluate without a detection"):
        results.evaluate_by_pycocotools(DATA, results.join([]))


def test_pycocotools_prints_nothing(capsys):
    results.evaluate_by_pycocotools(DATA, data_sets.detections((0.5, [1, 2, 3, 4])))
    assert capsys.readouterr().out == ""
