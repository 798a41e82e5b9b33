"""label_file.py: labels are read once, and whatever is not theirs is not taken for them."""

import hashlib
import logging

import numpy as np
import pytest

from resnext_jax.data.label_file import kept_labels

LABELS = np.array([3, 0, 70_000], np.int32)
CONTENT = b"\3\0\0\0\0\0\0\0\x70\x11\1\0"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "resnext_jax"


class Reading:
    """The slow way, and how often it was gone."""

    def __init__(self, labels: np.ndarray = LABELS):
        self.labels, self.times = labels, 0

    def __call__(self) -> np.ndarray:
        self.times += 1
        return self.labels


def test_they_are_read_once_and_then_lie_beside_the_data(tmp_path, cache):
    reading = Reading()
    for _ in range(2):
        found = kept_labels(tmp_path / "x.labels", "version 1", 3, reading)
        np.testing.assert_array_equal(found, LABELS)
        assert found.dtype == np.int32
    assert reading.times == 1
    assert (tmp_path / "x.labels").read_bytes() == hashlib.sha256(b"version 1" + CONTENT).digest() + CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["x.labels"]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:-4] + b"\1\0\0\0",
        lambda content: bytes(32) + content[32:],
        lambda content: hashlib.sha256(b"version 2" + CONTENT).digest() + CONTENT,
    ],
    ids=["empty", "cut", "another label", "another digest", "of another version"],
)
def test_a_file_that_is_not_theirs_is_written_anew(tmp_path, change):
    kept_labels(tmp_path / "x.labels", "version 1", 3, Reading())
    right = (tmp_path / "x.labels").read_bytes()
    (tmp_path / "x.labels").write_bytes(change(right))
    reading = Reading()
    np.testing.assert_array_equal(kept_labels(tmp_path / "x.labels", "version 1", 3, reading), LABELS)
    assert reading.times == 1
    assert (tmp_path / "x.labels").read_bytes() == right


def test_the_users_cache_takes_them_beside_read_only_data(tmp_path, cache, caplog):
    beside = tmp_path / "file" / "x.labels"  # below a file: not even root writes there
    beside.parent.write_text("")
    other = Reading(LABELS + 1)
    for version, reading in (("version 1", Reading()), ("version 2", other)):
        for _ in range(2):
            np.testing.assert_array_equal(kept_labels(beside, version, 3, reading), reading.labels)
        assert reading.times == 1
    assert len(list(cache.iterdir())) == 2
    assert not caplog.records


def test_where_nothing_can_be_written_it_is_said(tmp_path, cache, caplog):
    cache.parent.write_text("")
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(kept_labels(tmp_path / "file" / "x", "version 1", 3, Reading()), LABELS)
    assert "the next start reads every image again" in caplog.text
