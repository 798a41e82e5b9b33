"""Reports: the same counts as scikit-learn's on the same logits, for every protocol; where they may be written."""

import csv
import io
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from etils import epath
from PIL import Image
from sklearn import metrics as sklearn_metrics

import resnext_jax
from resnext_jax import metrics
from resnext_jax.data.decode import decode
from resnext_jax.data.imagenet_classes import imagenet_classes
from resnext_jax.errors import UserError
from resnext_jax.evaluate.answers import Answers, rank_rows
from resnext_jax.evaluate.loaded import LoadedCheckpoint
from resnext_jax.evaluate.per_class import class_rows, confusion, most_confused, worst
from resnext_jax.evaluate.pictures import Tile, draw_confusion, draw_sheet, plain
from resnext_jax.evaluate.protocols import Classes
from resnext_jax.evaluate.report import evaluate_with_report, in_words, new_directory, predictions_csv, worst_mistakes
from resnext_jax.sharding import Place, make_mesh
from resnext_jax.types import Batch
from tests.data.archives import jpeg, write_folders
from tests.evaluate import test_results

ODD = ('T-shirt, "long"', "$x_1$ or\nelse", os.fsdecode(b"caf\xe9"), "猫", "..x", "b" * 200, "=1+1", "plain")
IMAGES = {ODD[0]: 7, ODD[5]: 6, ODD[2]: 9, ODD[3]: 5}  # sorted, as the classes of the data
FOUR = Place(make_mesh(jax.devices()[:4]), "cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkpoint that knows ODD, and validation images of four of these classes."""
    root = tmp_path_factory.mktemp("report")
    write_folders(root / "data", "val", IMAGES)
    test_results.save(root / "run", ODD)
    return root


def report(root, out, *overrides, place=FOUR):
    """Write a report and return the row and the summary."""
    loaded = test_results.loaded(root / "run", *overrides)
    object.__setattr__(loaded, "place", place)
    variables = jax.device_put(loaded.variables, jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec()))
    object.__setattr__(loaded, "variables", variables)
    return evaluate_with_report(loaded, str(out))


def table(path):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def answers_of(right, top, rank=None, confidence=None):
    """Answers whose first class is `top`; right where it is in `right`."""
    found = [2 - (answer in labels) for labels, answer in zip(right, top, strict=True)]
    return Answers(
        indices=list(range(len(top))),
        names=[f"{i}.png" for i in range(len(top))],
        right=[tuple(labels) for labels in right],
        rank=np.array(rank or found, np.int32),
        probability=np.full(len(top), 0.25, np.float32),
        top=np.array(top, np.int32)[:, None],
        top_probability=np.array(confidence or [0.5] * len(top), np.float32)[:, None],
    )


@pytest.mark.slow
def test_counts_agree_with_scikit_learn(root, tmp_path):
    """On four devices, with classes whose names are no file names."""
    row, summary = report(root, tmp_path / "out")
    logits, data_labels = test_results.expected_logits(root / "run")
    labels, answers = np.array([0, 5, 2, 3])[data_labels], logits.argmax(axis=1)
    seen = sorted({*labels, *answers})

    matrix = table(tmp_path / "out" / "confusion.csv")
    assert [line["right class"] for line in matrix] == [ODD[label] for label in seen]
    counts = [[int(line[ODD[label]]) for label in seen] for line in matrix]
    np.testing.assert_array_equal(counts, sklearn_metrics.confusion_matrix(labels, answers))

    classes = table(tmp_path / "out" / "per_class.csv")
    precision, recall, _, support = sklearn_metrics.precision_recall_fscore_support(labels, answers, zero_division=0)
    assert [int(line["label"]) for line in classes] == seen
    assert [int(line["images"]) for line in classes] == support.tolist()
    np.testing.assert_allclose([float(line["accuracy"] or 0) for line in classes], recall, rtol=1e-5)
    np.testing.assert_allclose([float(line["precision"] or 0) for line in classes], precision, rtol=1e-5)
    top5 = [int(float(line["top5"] or 0) * int(line["images"]) + 0.5) for line in classes]
    assert sum(top5) / len(labels) == sklearn_metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(8))

    images = table(tmp_path / "out" / "predictions.csv")
    assert [int(line["index"]) for line in images] == list(range(27))
    assert [os.path.basename(os.path.dirname(line["image"])) for line in images] == [line["right"] for line in images]
    order = np.argsort(-logits, axis=1)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for place in range(5):
        assert [line[f"class{place + 1}"] for line in images] == [ODD[label] for label in order[:, place]]
        found = [float(line[f"probability{place + 1}"]) for line in images]
        np.testing.assert_allclose(found, np.sort(probabilities)[:, -1 - place], rtol=1e-3)
    assert [int(line["rank"]) for line in images] == (1 + (order == labels[:, None]).argmax(axis=1)).tolist()

    assert row["top1"] == np.mean(labels == answers)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["worst_classes"][0]["accuracy"] == min(recall[support > 0])
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(summary["files"])
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            picture.load()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("protocol=ten_crop",),
        ("protocol=multi_scale",),
        ("evaluate.classes=present",),
        ("evaluate.ensemble=OTHER", "evaluate.classes=present"),
        ("evaluate.class_map=MAP",),
    ],
)
def test_every_evaluation_has_the_same_row_with_a_report(root, tmp_path, overrides):
    """And every image once, in the order of the data, whatever order the protocol reads it in."""
    test_results.save(root / "other", ODD, seed=3) if not (root / "other").exists() else None
    (root / "map").write_text("7 1 0 3")
    overrides = [one.replace("OTHER", str(root / "other")).replace("MAP", str(root / "map")) for one in overrides]
    row, summary = report(root, tmp_path / "out", *overrides)
    assert row == pytest.approx(test_results.row(root / "run", *overrides), rel=1e-5)
    images = table(tmp_path / "out" / "predictions.csv")
    assert [int(line["index"]) for line in images] == list(range(27))
    right = [ODD[label] for label in (7, 1, 0, 3)] if "map" in overrides[0] else list(IMAGES)
    assert [line["right"] for line in images] == np.repeat(right, list(IMAGES.values())).tolist()
    assert sum(int(line["rank"]) == 1 for line in images) / 27 == row["top1"]
    if summary["classes"] == "present":
        assert {line["class1"] for line in images} <= set(IMAGES)
        assert "class5" not in images[0]  # there are four


@pytest.mark.slow
def test_real_labels_count_for_each_right_class(tmp_path):
    """The third image has two right answers, the seventh none; no matrix can show that."""
    names = tuple(imagenet_classes())
    accepted = np.full((50_000, 2), -1, np.int32)
    accepted[:, 0] = np.arange(50_000) % 1000
    accepted[2], accepted[6] = [5, 9], -1
    source = test_results.Validation()
    test_results.save(tmp_path / "run", names)
    config = tiny.config(
        *("--config=configs/resnext50_32x4d.py", "--config.data.image_size_px=28", "--config.data.resize_px=32"),
        *("--config.data.num_threads=0", "--config.evaluate.batch_size=4"),
    )
    net = resnext_jax.load(str(tmp_path / "run"))
    description = {"dataset": {"name": "imagenet2012", "class_names": list(names)}}
    loaded = LoadedCheckpoint(
        *(epath.Path(tmp_path / "run"), description, config, test_results.PLACE, source),
        *(Classes(np.arange(1000, dtype=np.int32), None, accepted), net.model, net.variables),
    )
    row, summary = evaluate_with_report(loaded, str(tmp_path / "out"))
    assert row["images"] == 4
    images = table(tmp_path / "out" / "predictions.csv")
    english = list(imagenet_classes().values())
    right = [f"{english[5]} | {english[9]}", english[0], english[999], english[1], ""]
    assert [(line["index"], line["right"]) for line in images] == [(str(i), name) for i, name in enumerate(right)]
    logits = [np.asarray(net(net.preprocess(decode(jpeg(index), ""))))[0] for index in range(4)]
    assert [line["class1"] for line in images[:4]] == [english[one.argmax()] for one in logits]
    assert images[4]["rank"] == ""
    classes = {line["class"]: line["images"] for line in table(tmp_path / "out" / "per_class.csv")}
    assert [classes[english[label]] for label in (0, 1, 5, 9, 999)] == ["1"] * 5
    assert summary["left_out"].keys() == {"confusion.csv", "confusion.png"}
    assert "several right classes" in in_words(summary, "out")
    assert not (tmp_path / "out" / "confusion.csv").exists()
    vars(source)["numbers"] = (3, 1, 50_000, 2, 3)
    with pytest.raises(UserError, match=r"_00000003.JPEG and .*_00000003.JPEG have the same number"):
        evaluate_with_report(loaded, str(tmp_path / "again"))


@pytest.mark.slow
def test_a_rank_is_what_the_evaluation_counts():
    """Ties and NaNs are wrong there."""
    nan = float("nan")
    logits = jnp.array([[1, 1, 0], [0, 2, 1], [nan, 0, 1], [3, nan, 1], [nan, nan, nan]], jnp.float32)
    labels, mask = jnp.array([0, 1, 2, 1, 0], jnp.int32), jnp.ones(5, jnp.float32)
    rows = rank_rows(logits, labels[:, None], Batch(image=None, label=labels, mask=mask))
    assert rows.rank.tolist() == [2, 1, 2, 3, 3]
    assert int(metrics.count(logits, labels, mask).top1) == 1
    many = np.random.default_rng(0).integers(0, 4, (200, 9)).astype(np.float32)
    right = np.arange(200, dtype=np.int32) % 9
    batch = Batch(image=None, label=jnp.asarray(right), mask=jnp.ones(200))
    rows = rank_rows(jnp.asarray(many), jnp.asarray(right)[:, None], batch)
    assert rows.rank.tolist() == (many >= many[np.arange(200), right][:, None]).sum(axis=1).tolist()


def test_counts_by_class():
    """Three classes of eleven; the last image has two right answers, and class 9 is answered alone."""
    answers = answers_of([[2], [2], [2], [4], [4, 7]], [2, 4, 4, 9, 7], rank=[1, 6, 2, 3, 1])
    rows = {row.label: row for row in class_rows(answers)}
    counts = {label: (row.images, row.right, row.top5, row.answers, row.right_answers) for label, row in rows.items()}
    assert counts == {2: (3, 1, 2, 1, 1), 4: (2, 1, 2, 2, 0), 7: (1, 1, 1, 1, 1), 9: (0, 0, 0, 1, 0)}
    assert (rows[2].taken_for, rows[4].taken_for, rows[7].taken_for) == ((4, 2), (9, 1), None)
    assert (rows[9].accuracy, rows[9].precision, rows[4].precision) == (None, 0.0, 0.0)
    assert [row.label for row in worst(list(rows.values()), 10)] == [2, 4]  # 1 of 3, 1 of 2; 7 has no mistake
    assert worst_mistakes(answers_of([[0]] * 3, [1, 0, 1], confidence=[0.4, 0.9, 0.8])) == [2, 0]
    assert predictions_csv(answers, [f"c{i}" for i in range(10)]).splitlines()[5] == "4,4.png,c4 | c7,1,0.25,c7,0.5"


@pytest.mark.slow
def test_a_thousand_classes_stay_readable():
    """The picture has the 30 classes of the most frequent confusions and all others together."""
    right, top = np.arange(1000).repeat(3), np.arange(1000).repeat(3)
    top[:60:3] = np.arange(20) + 500  # one mistake each
    top[30:90] = np.arange(10, 30).repeat(3) + 700  # three each
    labels, matrix = confusion(answers_of(right[:, None].tolist(), top.tolist()))
    assert labels == list(range(1000))
    assert most_confused(matrix, 30) == [*range(10, 25), *range(710, 725)]
    picture = draw_confusion(matrix, [f"class {label}" for label in labels], "title")
    with Image.open(io.BytesIO(picture)) as image:
        assert max(image.size) < 2500


def test_pictures_of_odd_names():
    """Mathematics, a byte that is no UTF-8, and a letter that no font has are drawn as they are, or as a box."""
    draw_confusion(np.eye(len(ODD), dtype=np.int64), ODD, "\n".join(ODD))
    tiles = [Tile(np.zeros((9, 30, channels), np.uint8), ODD) for channels in (1, 3)]
    draw_sheet(tiles, ODD[2])
    assert plain(ODD[2]) == "caf\ufffd"
    assert len(plain("b" * 200)) == 28


def test_directories_that_are_refused(tmp_path, bucket):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    bucket.pipe_file("gs://bucket/report/summary.json", b"{}")
    for path, words in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "x", "cannot be written"),
        (tmp_path / "full", "holds files already, and nothing is overwritten"),
        ("gs://bucket/report", "holds a report already"),
    ):
        with pytest.raises(UserError, match=f"{words}.*another --report=DIR"):
            new_directory(str(path))
    for path in (tmp_path / "new" / "one", tmp_path / "new" / "one"):  # the second time it is empty
        assert new_directory(str(path)).is_dir()


@pytest.mark.slow
def test_a_report_in_a_bucket(root, tmp_path, bucket):
    _, summary = report(root, "gs://bucket/out")
    _, local = report(root, tmp_path / "out", place=test_results.PLACE)
    assert (summary["worst_classes"], summary["files"]) == (local["worst_classes"], local["files"])
    for name in ("per_class.csv", "confusion.csv"):
        assert bucket.cat(f"gs://bucket/out/{name}") == (tmp_path / "out" / name).read_bytes()


@pytest.mark.slow
def test_two_processes_write_one_report(tmp_path):
    """The images of both are in it, once each; a directory that is taken stops both before they evaluate."""
    tiny.save_fresh(tmp_path / "run")
    for out, status in (("out", 0), ("out", 2)):
        address = tiny.free_address()
        arguments = ("--mode=evaluate", f"--report={tmp_path / out}")
        both = [tiny.start(tmp_path / "run", *arguments, **tiny.part(address, 2, process)) for process in range(2)]
        said = [tiny.finish(process, status) for process in both]
    assert "nothing is overwritten" in said[0]
    assert "process 0 stopped with an error of its own" in said[1]
    images = table(tmp_path / "out" / "predictions.csv")
    assert [int(line["index"]) for line in images] == list(range(3000))
    assert all(line["image"].endswith(f"[{line['index']}]") for line in images)
