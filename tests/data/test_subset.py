"""subset.py: some classes of any source, and a stand-in for images that cannot be read."""

import logging
import pathlib
import pickle
import time
from typing import Any

import numpy as np
import pytest

from resnext_jax.data import pipeline
from resnext_jax.data.crops import Crop
from resnext_jax.data.readers import GatherSource
from resnext_jax.data.sources import open_source
from resnext_jax.data.subset import ReplacingSource
from resnext_jax.errors import UserError
from tests.data.archives import open_arrays, write_folders


def write_list(path: pathlib.Path, *names: str) -> str:
    path.write_text("\n".join(names) + "\n")
    return str(path)


def test_a_subset_of_arrays(tmp_path):
    whole = open_arrays("builtin", "validation")
    class_list = write_list(tmp_path / "list", "Bag", "", "  T-shirt/top", "Sandal")
    part = open_arrays("builtin", "validation", class_list=class_list)
    assert part.info.class_names == ("T-shirt/top", "Sandal", "Bag")  # in the order of the whole set
    assert isinstance(part, GatherSource)
    images, labels = whole.gather(np.arange(3000))
    kept = np.isin(labels, [0, 5, 8])
    assert len(part) == kept.sum() == 900
    found, new = part.gather(np.arange(900))
    np.testing.assert_array_equal(found, images[kept])
    np.testing.assert_array_equal(np.array([0, 5, 8])[new], labels[kept])
    np.testing.assert_array_equal(part.all_labels(), new)
    assert part[17].label == new[17]
    np.testing.assert_array_equal(part[17].image, found[17])


def test_a_subset_of_folders_and_of_synthetic_images(tmp_path):
    write_folders(tmp_path, "train", {"ant": 2, "bee": 3, "cat": 1})
    class_list = write_list(tmp_path / "list", "cat", "bee")
    part = open_source("folder", "train", data_dir=str(tmp_path), class_list=class_list)
    assert part.info.class_names == ("bee", "cat")
    names = ["bee/000.JPEG", "bee/001.JPEG", "bee/002.JPEG", "cat/000.JPEG"]
    assert [part[i].name.removeprefix(f"{tmp_path}/train/") for i in range(4)] == names
    assert [part[i].label for i in range(4)] == [0, 0, 0, 1]
    assert not isinstance(part, GatherSource)
    sizes: dict[str, Any] = {"num_images": 10, "num_classes": 4, "image_size_px": 8}
    part = open_arrays("synthetic", "train", class_list=write_list(tmp_path / "list", "class 3"), **sizes)
    assert part.info.class_names == ("class 3",)
    whole = open_arrays("synthetic", "train", **sizes)
    np.testing.assert_array_equal(part.gather(np.arange(2))[0], whole.gather(np.array([3, 7]))[0])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "could not be read: No such file"),
        ("\n \n", "has no name in it"),
        ("Bag\nBags\n", "unknown class 'Bags'. Did you mean 'Bag'"),
        ("Bag\nCoat\nBag\n", "has 'Bag' 2 times"),
    ],
)
def test_class_lists_that_do_not_fit(tmp_path, content, problem):
    if content is not None:
        (tmp_path / "list").write_text(content)
    with pytest.raises(UserError) as caught:
        open_source("builtin", "train", class_list=str(tmp_path / "list"))
    assert problem in str(caught.value)
    assert str(tmp_path / "list") in str(caught.value)


def test_names_that_a_large_set_has_not(tmp_path):
    class_list = write_list(tmp_path / "list", "class 3", *(f"n{i}" for i in range(9)))
    with pytest.raises(UserError, match=r"9 class\(es\) are not among the 1,000 .*: n0, n1, n2, n3, n4, \.\.\."):
        open_source("synthetic", "train", class_list=class_list)


@pytest.mark.parametrize("name", ["builtin", "synthetic"])
def test_a_long_list_of_wrong_names_is_refused_in_seconds(tmp_path, name):
    class_list = write_list(tmp_path / "list", *(f"n{i:08}" for i in [*range(100_000), *range(20)]))
    started_s = time.monotonic()
    with pytest.raises(UserError, match=r"100000 class\(es\) are not among") as caught:
        open_source(name, "train", class_list=class_list)
    assert time.monotonic() - started_s < 30
    assert len(str(caught.value)) < 2000


def test_classes_without_an_image(tmp_path):
    write_folders(tmp_path, "train", {"ant": 1, "bee": 1})
    write_folders(tmp_path, "val", {"ant": 1})
    with pytest.raises(UserError):  # a folder set has the same classes in both splits
        open_source("folder", "validation", data_dir=str(tmp_path), class_list=write_list(tmp_path / "list", "bee"))
    with pytest.raises(UserError, match="no image of 'synthetic' is of a class in"):
        open_source("synthetic", "train", num_images=3, class_list=write_list(tmp_path / "list", "class 7"))


@pytest.fixture
def broken(tmp_path) -> pathlib.Path:
    """Six images, of which 002 and 003 are broken, in different ways."""
    write_folders(tmp_path, "train", {"ant": 6})
    folder = tmp_path / "train" / "ant"
    (folder / "002.JPEG").write_bytes((folder / "002.JPEG").read_bytes()[:300])
    (folder / "003.JPEG").write_bytes(b"")
    return tmp_path


def batches_of(source, **changes):
    arguments = {"batch_size": 6, "seed": 1, "steps": range(3)} | changes
    return list(pipeline.train_batches(source, Crop("random_sized", 16), **arguments))


def test_the_next_image_stands_in(broken, caplog):
    source = open_source("folder", "train", data_dir=str(broken), on_bad_image="replace")
    assert isinstance(source, ReplacingSource)
    with caplog.at_level(logging.WARNING):
        batches = batches_of(source)
    # each broken image is told of once, however often it comes
    warnings = sorted(record.getMessage() for record in caplog.records)
    named = [text.split(" is not")[0].removeprefix(f"{broken}/train/ant/") for text in warnings]
    assert named == ["002.JPEG", "003.JPEG"]
    assert sorted(text.split("replace; ")[1] for text in warnings) == ["1 such so far).", "2 such so far)."]
    assert source.bad_indices == {2, 3}
    # the same as from a folder where 004 lies in the places of 002 and 003
    folder = broken / "train" / "ant"
    for name in ("002.JPEG", "003.JPEG"):
        (folder / name).write_bytes((folder / "004.JPEG").read_bytes())
    for batch, other in zip(batches, batches_of(open_source("folder", "train", data_dir=str(broken))), strict=True):
        np.testing.assert_array_equal(batch.image, other.image)


def test_threads_hosts_and_another_process_replace_alike(broken):
    source = open_source("folder", "train", data_dir=str(broken), on_bad_image="replace")
    copy = pickle.loads(pickle.dumps(source))
    hosts = [batches_of(pickle.loads(pickle.dumps(source)), process=(i, 3)) for i in range(3)]
    one, other = batches_of(source, num_threads=4), batches_of(copy, num_threads=0)
    for batch, same, *parts in zip(one, other, *hosts, strict=True):
        np.testing.assert_array_equal(batch.image, same.image)
        np.testing.assert_array_equal(batch.image, np.concatenate([part.image for part in parts]))
        np.testing.assert_array_equal(batch.label, np.concatenate([part.label for part in parts]))


def test_an_error_by_default(broken):
    advice = r"00[23]\.JPEG is not a readable image .* --config\.data\.on_bad_image=replace"
    with pytest.raises(UserError, match=advice):
        batches_of(open_source("folder", "train", data_dir=str(broken)))
    with pytest.raises(UserError, match=r"unknown on_bad_image 'replce'\. Did you mean 'replace'"):
        open_source("folder", "train", data_dir=str(broken), on_bad_image="replce")


@pytest.mark.parametrize("num_images", [3, 150])
def test_nothing_but_broken_images_is_no_endless_search(tmp_path, num_images):
    (tmp_path / "train" / "ant").mkdir(parents=True)
    for i in range(num_images):
        (tmp_path / "train" / "ant" / f"{i:03}.png").write_bytes(b"no image")
    source = open_source("folder", "train", data_dir=str(tmp_path), on_bad_image="replace")
    with pytest.raises(UserError, match=rf"{min(num_images, 100)} images in a row could not be read"):
        batches_of(source)
