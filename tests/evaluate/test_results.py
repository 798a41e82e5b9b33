"""Testing by a protocol, from a checkpoint and the fields of a config to the row, and what is refused."""

import dataclasses
import json
import os
import subprocess

import jax
import numpy as np
import pytest
import tiny

import resnext_jax
from resnext_jax.builders import first_difference
from resnext_jax.checkpoint import Checkpoints
from resnext_jax.config import command_line
from resnext_jax.config.checks import evaluation_problems, protocol_problems
from resnext_jax.data import folder
from resnext_jax.data.decode import decode
from resnext_jax.data.imagenet_classes import imagenet_classes
from resnext_jax.data.readers import Record
from resnext_jax.data.real_labels import NumberedSource, read_real_labels
from resnext_jax.data.sources import open_source
from resnext_jax.errors import UserError, raise_all
from resnext_jax.evaluate import results as protocol
from resnext_jax.evaluate.loaded import load_checkpoint
from resnext_jax.runtime.writer import read_metrics
from resnext_jax.sharding import Place, make_mesh
from resnext_jax.train.classification import Classification
from resnext_jax.types import DatasetInfo
from tests.data.archives import jpeg, write_folders

KNOWN = ("n01", "n02", "n03", "x1", "x2", "x3", "x4", "x5")
VALIDATION = {"n01": 3, "n03": 4, "x2": 2}  # images
PLACE = Place(make_mesh(jax.devices()[:1]), "cpu")


def save(workdir, names, *overrides, seed=0):
    """A checkpoint of untrained weights that knows the classes `names`."""
    config = tiny.config(
        "--config=configs/resnext50_32x4d.py",
        "--config.model.name=resnext11_4x2d_tiny",
        "--config.compute_dtype=float32",
        "--config.data.name=folder",
        f"--config.data.dir={workdir.parent / 'data'}",
        "--config.data.image_size_px=28",
        "--config.data.resize_px=32",
        "--config.data.num_threads=0",
        "--config.evaluate.batch_size=4",
        f"--config.seed={seed}",
        *overrides,
    )
    state = Classification(config, PLACE, DatasetInfo("folder", 100, tuple(names), None)).create_state()
    # Fresh weights hardly see the images; larger ones of the classifier tell them apart.
    kernel = jax.random.normal(jax.random.key(seed), state.params["classifier"]["kernel"].shape)
    state = state.replace(params={**state.params, "classifier": {**state.params["classifier"], "kernel": kernel}})
    checkpoints = Checkpoints(str(workdir), keep_newest=1, keep_best=0)
    dataset = {"name": "folder", "class_names": list(names)}
    checkpoints.save(state, {"config": json.loads(config.to_json_best_effort()), "dataset": dataset})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("protocol")
    write_folders(root / "data", "val", VALIDATION)
    save(root / "run", KNOWN)
    return root


def row(workdir, *overrides):
    """`python main.py --mode=evaluate --workdir=DIR --config.FIELD=VALUE ...`"""
    trained = loaded(workdir, *overrides)
    return trained.evaluate(trained.variables)


def loaded(workdir, *overrides):
    def prepare(config):
        command_line.override(config, overrides)
        raise_all(evaluation_problems(config, 1) + protocol_problems(config))

    return load_checkpoint(str(workdir), None, PLACE, prepare=prepare, raw=False)


def expected_logits(workdir):
    """The logits of the centres, and the labels among the classes of the data."""
    net = resnext_jax.load(str(workdir))
    source = open_source("folder", "validation", data_dir=str(workdir.parent / "data"))
    centres = np.concatenate([net.preprocess(decode(bytes(source[i].image), "")) for i in range(len(source))])
    return np.asarray(net(centres), np.float64), source.all_labels()


def row_of(logits, labels):
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    ranks = np.argsort(-logits, axis=1)
    return {
        "loss": losses.mean(),
        "top1": (ranks[:, 0] == labels).mean(),
        "top5": (ranks[:, :5] == labels[:, None]).any(axis=1).mean(),
    }


def same(found, expected):
    assert found["images"] == 9
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert found["top1_low"] <= found["top1"] <= found["top1_high"]


@pytest.mark.slow
def test_among_all_classes_and_among_those_of_the_images(root):
    logits, labels = expected_logits(root / "run")
    columns = np.array([0, 2, 4])  # n01, n03 and x2 among KNOWN
    every, present = row_of(logits, columns[labels]), row_of(logits[:, columns], labels)
    assert every["loss"] != pytest.approx(present["loss"], rel=0.01)
    same(row(root / "run"), every)
    same(row(root / "run", "evaluate.classes=present"), present)


@pytest.mark.slow
def test_a_map_where_the_names_differ(root, tmp_path):
    logits, labels = expected_logits(root / "run")
    save(tmp_path / "run", [f"class {label}" for label in range(8)], f"--config.data.dir={root / 'data'}")
    with pytest.raises(UserError, match=r"has 3, and 3 of these are not among them: n01, n03, x2 \(it knows class 0"):
        row(tmp_path / "run")
    columns = np.array([7, 1, 3])
    (tmp_path / "lines").write_text("7\n1\n3\n")
    (tmp_path / "manifest.json").write_text(json.dumps({"notes": {"imagenet1k_labels": [7, 1, 3]}}))
    for file in ("lines", "manifest.json"):
        same(
            row(tmp_path / "run", f"evaluate.class_map={tmp_path / file}", "evaluate.classes=present"),
            row_of(logits[:, columns], labels),
        )


def test_imagenet_v2_as_it_is_downloaded(tmp_path):
    """Its folders are named by the labels, and stand in the order of text: the commands of docs/evaluation.md."""
    write_folders(tmp_path, "validation", {str(label): 1 for label in range(12)})
    listed = subprocess.run(["ls", tmp_path / "validation"], env={**os.environ, "LC_ALL": "C"}, stdout=subprocess.PIPE)
    (tmp_path / "labels.txt").write_bytes(listed.stdout)
    config = tiny.config(f"--config.evaluate.class_map={tmp_path / 'labels.txt'}")
    source = open_source("folder", "validation", data_dir=str(tmp_path))
    known = {"name": "imagenet2012", "class_names": [f"n{label:08}" for label in range(12)]}
    label_of = protocol.classes_of(config, source, known, "run").label_of
    assert label_of.tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    for index in range(12):
        assert source.locate(index).split("/")[-2] == str(label_of[source[index].label])


@pytest.mark.slow
def test_imagenet5k_is_evaluated_both_ways_while_it_trains(tmp_path, monkeypatch):
    """Eight classes for 5000, of which the validation images have three: the row is that of the two evaluations."""
    monkeypatch.setitem(folder.NUM_CLASSES, "imagenet5k", 8)
    write_folders(tmp_path / "data", "train", dict.fromkeys(KNOWN, 1))
    write_folders(tmp_path / "data", "validation", VALIDATION)
    config = tiny.config(
        *("--config=configs/resnext50_32x4d_imagenet5k.py", "--config.model.name=resnext11_4x2d_tiny"),
        *(f"--config.data.dir={tmp_path / 'data'}", "--config.data.image_size_px=28", "--config.data.resize_px=32"),
        *("--config.batch_size=8", "--config.num_steps=1", "--config.data.num_threads=1"),
        *("--config.evaluate.batch_size=4", "--config.compute_dtype=float32"),
    )
    tiny.train(config, tmp_path / "run")
    (found,) = [one for one in read_metrics(str(tmp_path / "run")) if one["phase"] == "evaluate"]
    every, present = row(tmp_path / "run"), row(tmp_path / "run", "evaluate.classes=present")
    for k in (1, 5):
        assert found[f"top{k}"] == every[f"top{k}"]
        assert found[f"top{k}_present"] == present[f"top{k}"]
    assert found["top5_present"] == 1.0 > found["top5"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("7 1", "has 2 labels, and the data 3 classes"),
        ("7 1 8", r"has the label 8: each must be in \[0, 8\)"),
        ("7 1 1", "has the label 1: .* stand there once"),
        ("a b c", "cannot be read: ValueError"),
        ("{}", "cannot be read: .*notes is missing"),
        (50_000 * '{"a":', "cannot be read: .*lie within one another"),
        (
            json.dumps({"notes": {"imagenet1k_labels": [0.5, 1.2, 2.7]}}),
            "cannot be read: .*is 0.5, not a whole",
        ),
        (None, "cannot be read: No such file"),
    ],
)
def test_wrong_maps(root, tmp_path, content, message):
    if content is not None:
        (tmp_path / "map").write_text(content)
    with pytest.raises(UserError, match=message):
        row(root / "run", f"evaluate.class_map={tmp_path / 'map'}")


@pytest.mark.slow
def test_an_ensemble_of_two_networks(root, tmp_path):
    """The second normalises otherwise, and has no shortcuts."""
    changes = ("--config.data.mean=100.0,100.0,100.0", "--config.model.shortcut=false")
    other = save(root / "other", KNOWN, *changes, seed=3)
    first, labels = expected_logits(root / "run")
    second, _ = expected_logits(other)
    softmax = [np.exp(x - x.max(1, keepdims=True)) for x in (first, second)]
    mean = sum(x / x.sum(1, keepdims=True) for x in softmax) / 2
    same(row(root / "run", f"evaluate.ensemble={other}"), row_of(np.log(mean), np.array([0, 2, 4])[labels]))
    # Among the classes of the images each network has probabilities that sum to 1.
    of_three = [x[:, [0, 2, 4]] for x in softmax]
    mean = sum(x / x.sum(1, keepdims=True) for x in of_three) / 2
    same(row(root / "run", f"evaluate.ensemble={other}", "evaluate.classes=present"), row_of(np.log(mean), labels))


@pytest.mark.slow
def test_ensembles_that_cannot_be(root, tmp_path):
    strange = save(tmp_path / "strange", KNOWN[:7], f"--config.data.dir={root / 'data'}")
    order = (
        r"the same classes in the same order: .*/strange/.* knows 7, and .*/run/.* 8\. Leave .*strange out of evaluate"
    )
    with pytest.raises(UserError, match=order):
        row(root / "run", f"evaluate.ensemble={strange}")
    assert first_difference(KNOWN, list(KNOWN)) is None
    assert first_difference(KNOWN, KNOWN[::-1]) == "; the first that differs: 'n01', there 'x5'"
    for twice in (root / "run", f"{strange},{strange / 'checkpoints'}"):
        with pytest.raises(UserError, match=r"names .* although it is a member already.*Leave .* out"):
            row(root / "run", f"evaluate.ensemble={twice}")
    with pytest.raises(UserError, match="no checkpoint in /nowhere"):
        row(root / "run", "evaluate.ensemble=/nowhere")
    with pytest.raises(UserError, match=r"evaluate\.ensemble=',' names no other checkpoint"):
        row(root / "run", "evaluate.ensemble=,")
    grey = save(
        root / "grey",
        KNOWN,
        *("--config.data.mean=100.0,", "--config.data.std=50.0,"),
        *("--config.augment.color_jitter=0", "--config.augment.lighting_std=0"),
    )
    with pytest.raises(UserError, match=r"grey/checkpoints/0 takes images of 1 channels, and .*/run/.* of 3"):
        row(root / "run", f"evaluate.ensemble={grey}")


@pytest.mark.slow
def test_ten_crops_and_scales_of_a_checkpoint(root):
    """Every image once, whatever its shape; the views are tested in tests/evaluate/test_protocols.py."""
    centre = row(root / "run")
    for name in ("ten_crop", "multi_scale"):
        found = row(root / "run", f"protocol={name}")
        assert found["images"] == 9
        assert found["loss"] != centre["loss"]


def test_refused(root, tmp_path):
    with pytest.raises(UserError, match=r"unknown protocol 'ten_crops'. Did you mean 'ten_crop'\?"):
        row(root / "run", "protocol=ten_crops")
    with pytest.raises(UserError, match=r"unknown evaluate.classes '1k'. Known: all, present"):
        row(root / "run", "evaluate.classes=1k")
    with pytest.raises(UserError, match=r"add --config.data.crop=resize"):
        row(root / "run", "protocol=ten_crop", "data.crop=none")
    with pytest.raises(UserError, match=r"real.json cannot be read: No such file"):
        read_real_labels(str(tmp_path / "real.json"))
    (tmp_path / "real.json").write_text(json.dumps([[1]] * 50_000))
    wants = (
        r"labels of ImageNet's 1000 classes in .* n01440764 first; .* knows 8 classes, n01 first, and the data have 3"
    )
    with pytest.raises(UserError, match=wants):
        row(root / "run", f"evaluate.real_labels={tmp_path / 'real.json'}")


def test_training_refuses_them_too():
    """They would go into its checkpoints, and be found out at the end."""
    both = r"(?s)unknown protocol 'ten_crops'.*unknown evaluate.classes '1k'. Known: all, present"
    with pytest.raises(UserError, match=both):
        tiny.assembled("--config.protocol=ten_crops", "--config.evaluate.classes=1k")


@pytest.mark.slow
def test_the_row_says_what_it_is_of(root):
    """In JSON and in words: who answers, which classes an answer may be, the sizes."""

    def said(*overrides):
        trained = loaded(root / "run", *overrides)
        return trained.conditions(), trained.in_words()

    usual = {"data": "folder", "protocol": "center", "image_size_px": 28, "resize_px": 32}
    usual |= {"classes": "all", "num_classes": 8}
    assert said() == (usual, "folder (center, 28 px of 32; 8 classes)")
    other = save(root / "another", KNOWN, seed=4)
    row, words = said("protocol=ten_crop", "evaluate.classes=present", f"evaluate.ensemble={other}")
    changed = {"protocol": "ten_crop", "classes": "present", "num_classes": 3, "ensemble": str(other)}
    assert row == usual | changed
    of = f"folder (ten_crop, 28 px of 32; the 3 of 8 classes that they have; an ensemble with {other})"
    assert words == of
    row, words = said("protocol=center_320")
    assert row == usual | {"protocol": "center_320", "image_size_px": 320, "resize_px": 365}
    assert said("protocol=multi_scale")[1] == "folder (multi_scale, 28 px; 8 classes)"
    assert said("data.crop=none")[0]["resize_px"] is None


def test_a_config_without_these_fields(root):
    """What was written before there were any."""
    config = tiny.config()
    with config.unlocked():
        del config.protocol, config.evaluate.ensemble, config.evaluate.classes, config.data.interpolation
        del config.evaluate.class_map, config.evaluate.real_labels
    protocol.fill(config)
    assert (config.protocol, config.evaluate.classes, config.evaluate.ensemble) == ("center", "all", None)
    assert protocol_problems(config) == []


class Validation:
    """Five of the 50,000 images, under their names."""

    numbers = (3, 1, 50_000, 2, 7)
    info = DatasetInfo("imagenet2012", 5, tuple(imagenet_classes()), None)

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return Record(jpeg(index), 0, f"val/ILSVRC2012_val_{self.numbers[index]:08}.JPEG")

    def locate(self, index):
        return str(index)

    def all_labels(self):
        return np.zeros(5, np.int32)


@pytest.mark.slow
def test_real_labels_of_files(tmp_path):
    """By their numbers: the third image has two right answers, the seventh none."""
    lists = [[number % 1000] for number in range(50_000)]
    lists[2], lists[6] = [5, 9], []
    (tmp_path / "real.json").write_text(json.dumps(lists))
    table = read_real_labels(str(tmp_path / "real.json"))
    source = NumberedSource(Validation())
    right = [table[source[index].label].tolist() for index in range(5)]
    assert right == [[5, 9], [0, -1], [999, -1], [1, -1], [-1, -1]]

    names = Validation.info.class_names
    save(tmp_path / "run", names)
    config = tiny.config(
        "--config=configs/resnext50_32x4d.py",
        "--config.data.image_size_px=28",
        "--config.data.resize_px=32",
        "--config.data.num_threads=0",
        "--config.evaluate.batch_size=4",
        f"--config.evaluate.real_labels={tmp_path / 'real.json'}",
    )
    net = resnext_jax.load(str(tmp_path / "run"))
    member = protocol.Member(net.model, config.data.mean, config.data.std)
    classes = protocol.classes_of(config, Validation(), {"name": "imagenet2012", "class_names": names}, "run")
    found = protocol.evaluate_by_protocol(config, [member], [net.variables], Validation(), classes, PLACE)
    assert found["images"] == 4
    logits = [np.asarray(net(net.preprocess(decode(jpeg(index), ""))), np.float64)[0] for index in range(4)]
    probability = [np.exp(one - one.max()) / np.exp(one - one.max()).sum() for one in logits]
    answers = ([5, 9], [0], [999], [1])
    losses = [-np.log(p[answer].sum()) for p, answer in zip(probability, answers, strict=True)]
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    hits = sum(int(p.argmax()) in answer for p, answer in zip(probability, answers, strict=True))
    assert found["top1"] == hits / 4


@pytest.mark.slow
def test_real_labels_want_the_order_of_imagenet(tmp_path):
    """Its English names, sorted, are the same 1000 in another order: tench is 890 there, and 0 in the labels."""
    (tmp_path / "real.json").write_text(json.dumps([[1]] * 50_000))
    config = tiny.config(f"--config.evaluate.real_labels={tmp_path / 'real.json'}")
    ids, english = list(imagenet_classes()), sorted(set(imagenet_classes().values()))
    english += [f"{name} again" for name in english[: 1000 - len(english)]]  # two of them are called alike

    def classes(known, names):
        source = Validation()
        source.info = dataclasses.replace(source.info, class_names=tuple(names))
        return protocol.classes_of(config, source, {"name": "x", "class_names": list(known)}, "run")

    assert classes(ids, ids).accepted.shape == (50_000, 1)
    with pytest.raises(UserError, match=rf"n01440764 first; run knows 1,000 classes, {english[0]} first"):
        classes(english, english)
    # A map that says which English name is which id is an answer, where the network knows the ids ...
    (tmp_path / "map").write_text("\n".join(map(str, range(1000))))
    config.evaluate.class_map = str(tmp_path / "map")
    assert classes(ids, english).accepted is not None
    # ... or where the data do, and the network's labels are theirs.
    assert classes(english, ids).accepted is not None
    (tmp_path / "map").write_text("\n".join(map(str, range(999, -1, -1))))
    with pytest.raises(UserError, match="in the order of their WordNet ids"):
        classes(english, ids)


def test_real_labels_want_names(tmp_path):
    class Nameless(Validation):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(name="validation[3]")

    with pytest.raises(UserError, match=r"validation\[3\] does not say which image"):
        NumberedSource(Nameless())[0]
    for lists, message in (
        ([[1]] * 3, "it has 3 lists, not 50,000"),
        ([[1000]] * 50_000, r"\[0\]\[0\] is 1000, not a whole number in \[0, 1,000\)"),
        ([[True]] * 50_000, "is True, not a whole number"),
        ({"a": 1}, "cannot be read"),
        ([[1]] * 49_999 + [[1] * 2_000_000], "list 49,999 has 2,000,000 labels"),  # a table of 373 GiB
    ):
        (tmp_path / "real.json").write_text(json.dumps(lists))
        with pytest.raises(UserError, match=message):
            read_real_labels(str(tmp_path / "real.json"))
