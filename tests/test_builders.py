"""dataset.py: what of a config reaches the source."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs import common
from resnext_jax import builders as dataset
from resnext_jax.builders import open_data, require_same_on_all_hosts
from resnext_jax.data.subset import ReplacingSource
from resnext_jax.errors import UserError
from resnext_jax.sharding import Place, make_mesh


@pytest.fixture
def config(tmp_path: pathlib.Path):
    """Two classes, two splits, of one image each."""
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / split / name / "0.png")
    config = common.imagenet()
    config.data.name, config.data.dir = "folder", str(tmp_path)
    return config


def test_a_class_list_is_of_both_splits(config, tmp_path):
    (tmp_path / "list").write_text("bee\n")
    config.data.class_list = str(tmp_path / "list")
    for split in ("train", "validation"):
        source = open_data(config, split)
        assert source.info.class_names == ("bee",)
        assert len(source) == 1


def test_only_training_replaces_images(config):
    config.data.on_bad_image = "replace"
    assert isinstance(open_data(config, "train"), ReplacingSource)
    assert not isinstance(open_data(config, "validation"), ReplacingSource)
    config.data.on_bad_image = "ignore"
    with pytest.raises(UserError, match="unknown on_bad_image 'ignore'"):
        open_data(config, "train")


@pytest.mark.parametrize(
    ("there", "problem"),
    [
        ((), None),
        (("rename", "train/ant/0.png", "train/ant/1.png"), "2 train and 2 validation images both, but"),
        (("copy", "val/bee/0.png", "val/bee/1.png"), "2 train and 3 validation images there, 2 and 2 here"),
        (("rename_class", "ant", "antelope"), "2 train and 2 validation images both, but of other classes or in anoth"),
    ],
)
def test_hosts_must_read_the_same_images(config, tmp_path, monkeypatch, there, problem):
    place = Place(make_mesh(jax.devices()[:1]), "cpu", process_index=0, process_count=2)
    own = {split: open_data(config, split) for split in ("train", "validation")}
    other = tmp_path / "other"
    for split in ("train", "val"):
        shutil.copytree(tmp_path / split, other / split)
    match there:
        case "rename", old, new:
            (other / old).rename(other / new)
        case "copy", old, new:
            shutil.copy(other / old, other / new)
        case "rename_class", old, new:
            for split in ("train", "val"):
                (other / split / old).rename(other / split / new)
    config.data.dir = str(other)
    others = {split: open_data(config, split) for split in ("train", "validation")}
    said = []
    monkeypatch.setattr(dataset, "from_all", lambda place, values: said.append(values) or np.array([values]))
    require_same_on_all_hosts(place, **own)
    require_same_on_all_hosts(place, **others)
    monkeypatch.setattr(dataset, "from_all", lambda place, values: np.array(said))
    if problem is None:
        require_same_on_all_hosts(place, **own)
        return
    with pytest.raises(UserError, match=f"the data of process 1 is not that of process 0: {problem}"):
        require_same_on_all_hosts(place, **own)
