"""dataset.py: what of a config reaches the source."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from configs import common
from resnext_jax.data.subset import ReplacingSource
from resnext_jax.errors import UserError
from resnext_jax.train.dataset import open_data


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
