"""stream.py: a hanging read is named, errors come in the order of the rows, few batches wait."""

import io
import logging
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from resnext_jax.data import pipeline, stream
from resnext_jax.data.crops import Crop
from resnext_jax.data.order import train_indices
from resnext_jax.data.readers import Record
from resnext_jax.errors import UserError
from resnext_jax.types import DatasetInfo

ROOT = os.path.join(os.path.dirname(__file__), "..", "..")


class Files:
    """200 small JPEGs in memory; reading one of them can be made to hang."""

    def __init__(self, hanging: int | None = None):
        self.info = DatasetInfo("files", 200, ("a", "b"), None)
        self.hanging, self.let_go, self.read = hanging, threading.Event(), []
        rng = np.random.default_rng(0)
        self.files = []
        for _ in range(len(self)):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(stream, "JPEG")
            self.files.append(stream.getvalue())

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Record:
        if index == self.hanging:
            self.let_go.wait()
        self.read.append(index)
        return Record(self.files[index], index % 2, self.locate(index))

    def locate(self, index: int) -> str:
        return f"mount/{index}.jpg"

    def all_labels(self) -> np.ndarray:
        return np.arange(200, dtype=np.int32) % 2


def batches_of(source, start_step=0, num_steps=1000, **changes):
    arguments = {"batch_size": 4, "seed": 0, "steps": range(start_step, num_steps)} | changes
    return pipeline.train_batches(source, Crop("random_sized", 8), **arguments)


@pytest.mark.slow
def test_1000_batches_are_equal_for_any_threads_and_hosts():
    source = Files()

    def whole(num_threads: int, process_count: int) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels, (step, row in the global batch, ...)."""
        hosts = [
            list(batches_of(source, num_threads=num_threads, process=(index, process_count)))
            for index in range(process_count)
        ]
        images = np.concatenate([np.stack([batch.image for batch in host]) for host in hosts], axis=1)
        return images, np.concatenate([np.stack([batch.label for batch in host]) for host in hosts], axis=1)

    images, labels = whole(0, 1)
    assert images.shape == (1000, 4, 8, 8, 3)
    assert len({batch.tobytes() for batch in images}) == 1000
    for num_threads, process_count in ((1, 1), (2, 1), (4, 1), (2, 2), (2, 4)):
        other_images, other_labels = whole(num_threads, process_count)
        np.testing.assert_array_equal(other_images, images)
        np.testing.assert_array_equal(other_labels, labels)


@pytest.mark.parametrize("start_step", [0, 400_000])
def test_a_start_anywhere_reads_only_what_it_yields(start_step):
    source = Files()
    batches = list(batches_of(source, start_step=start_step, num_steps=start_step + 3))
    assert len(batches) == 3
    positions = [divmod(4 * step + row, 200) for step in range(start_step, start_step + 3) for row in range(4)]
    expected = [int(train_indices(200, 0, np.array([epoch * 200 + offset]))[0]) for epoch, offset in positions]
    assert sorted(source.read) == sorted(expected)
    assert [label for batch in batches for label in batch.label.tolist()] == [index % 2 for index in expected]


def test_a_hanging_read_is_named_in_a_warning_then_in_an_error(monkeypatch, caplog):
    monkeypatch.setattr(stream, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(stream, "WARN_AFTER_S", 0.1)
    monkeypatch.setattr(stream, "GIVE_UP_AFTER_S", 0.5)
    source = Files(hanging=17)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(UserError, match=r"thread grain-prefetch_\d has been at") as raised,
    ):
        list(batches_of(source))
    source.let_go.set()
    assert "start again" in str(raised.value)
    warnings = [record.getMessage() for record in caplog.records if "mount/17.jpg" in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].endswith("still waiting.")


def test_the_first_rows_error_comes_after_the_batches_before():
    for _ in range(5):
        source = Files()
        order = [int(batch.label[0]) for batch in batches_of(source, batch_size=1, num_steps=8, num_threads=0)]
        broken = source.read[6:8]  # both in the batch that follows
        for index in broken:
            source.files[index] = b"broken"
        batches = batches_of(source, batch_size=4, num_threads=4)
        assert next(batches).label.tolist() == order[:4]
        with pytest.raises(UserError, match=rf"^mount/{broken[0]}\.jpg is not a readable image"):
            next(batches)


def test_a_slow_thread_is_waited_for(monkeypatch):
    monkeypatch.setattr(stream, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(stream, "WARN_AFTER_S", 0.1)
    source = Files(hanging=17)
    threading.Timer(0.4, source.let_go.set).start()
    assert len(list(batches_of(source, num_steps=60))) == 60


@pytest.mark.slow
def test_an_exit_in_the_middle_is_an_ordinary_one():
    code = (
        "import sys\n"
        "from tests.data.test_stream import Files, batches_of\n"
        "batches = batches_of(Files(), num_threads=8, batch_size=64)\n"
        "next(batches)\n"
        "sys.exit(7)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (7, b"")


@pytest.mark.parametrize("num_threads", [1, 3, 16])
@pytest.mark.slow
def test_few_batches_are_begun_whatever_the_number_of_threads(num_threads):
    source = Files()
    batches = batches_of(source, num_threads=num_threads, batch_size=16, num_steps=200)
    next(batches)
    count = -1
    while count != len(source.read):  # until no thread reads on
        count = len(source.read)
        time.sleep(0.3)
    # What is begun: those ahead; one that waits; one that is handed over; ours.
    assert count <= (stream.BATCHES_AHEAD + 4) * 16
    assert sum(1 for _ in batches) == 199
    batches.close()
