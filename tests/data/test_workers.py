"""The threads that fill batches: a hanging one is named and does not keep the process, batches in waiting are few."""

import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from resnext_jax.data import pipeline, workers
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


def stream(source, **changes):
    arguments = {"batch_size": 4, "seed": 0, "start_step": 0, "num_steps": 1000, "image_size_px": 8, "num_threads": 2}
    return pipeline.train_batches(source, crop="random_sized", **{**arguments, **changes})


def test_1000_batches_are_the_same_with_any_number_of_threads_and_hosts():
    source = Files()

    def whole(num_threads: int, process_count: int) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels, (step, row in the global batch, ...)."""
        hosts = [
            list(stream(source, num_threads=num_threads, process_index=index, process_count=process_count))
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
    batches = list(stream(source, start_step=start_step, num_steps=start_step + 3))
    assert len(batches) == 3
    positions = [divmod(4 * step + row, 200) for step in range(start_step, start_step + 3) for row in range(4)]
    expected = [int(train_indices(200, 0, np.array([epoch * 200 + offset]))[0]) for epoch, offset in positions]
    assert sorted(source.read) == sorted(expected)
    assert [label for batch in batches for label in batch.label.tolist()] == [index % 2 for index in expected]


def test_a_hanging_thread_is_named_first_in_a_warning_then_in_an_error(monkeypatch, caplog):
    monkeypatch.setattr(workers, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(workers, "WARN_AFTER_S", 0.1)
    monkeypatch.setattr(workers, "GIVE_UP_AFTER_S", 0.5)
    source = Files(hanging=17)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=r"thread input-\d has been at") as raised:
        list(stream(source))
    source.let_go.set()
    assert "mount/17.jpg" in str(raised.value)
    assert "start again" in str(raised.value)
    warnings = [record.getMessage() for record in caplog.records if "mount/17.jpg" in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].endswith("still waiting.")


def test_of_several_errors_that_of_the_first_row_is_told_after_every_batch_before_it():
    for _ in range(5):
        source = Files()
        order = [int(batch.label[0]) for batch in stream(source, batch_size=1, num_steps=8, num_threads=0)]
        broken = source.read[6:8]  # both in the batch that follows
        for index in broken:
            source.files[index] = b"broken"
        batches = stream(source, batch_size=4, num_threads=4)
        assert next(batches).label.tolist() == order[:4]
        with pytest.raises(UserError, match=rf"^mount/{broken[0]}\.jpg is not a readable image"):
            next(batches)


def test_a_slow_thread_is_waited_for(monkeypatch):
    monkeypatch.setattr(workers, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(workers, "WARN_AFTER_S", 0.1)
    source = Files(hanging=17)
    threading.Timer(0.4, source.let_go.set).start()
    assert len(list(stream(source, num_steps=60))) == 60


@pytest.mark.parametrize("how", ["gives up", "ctrl-c"])
def test_a_hanging_thread_does_not_keep_the_process(how):
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tests.data.test_workers import Files, stream\n"
        "from resnext_jax.data import workers\n"
        f"workers.GIVE_UP_AFTER_S = workers.WARN_AFTER_S = {2.0 if how == 'gives up' else 1000.0}\n"
        "for number, batch in enumerate(stream(Files(hanging=17))):\n"
        "    if number == 0: print('begun', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as run:
        try:
            assert run.stdout.readline() == b"begun\n"
            if how == "ctrl-c":
                time.sleep(2)  # until it hangs
                run.send_signal(signal.SIGINT)
            _, errors = run.communicate(timeout=60)  # the thread itself would hang for ever
        finally:
            run.kill()
    assert (b"mount/17.jpg" if how == "gives up" else b"KeyboardInterrupt") in errors


def test_an_exit_in_the_middle_is_an_ordinary_one():
    code = (
        "import sys\n"
        "from tests.data.test_workers import Files, stream\n"
        "batches = stream(Files(), num_threads=8, batch_size=64)\n"
        "next(batches)\n"
        "sys.exit(7)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (7, b"")


@pytest.mark.parametrize("num_threads", [1, 3, 16])
def test_few_batches_are_begun_whatever_the_number_of_threads(num_threads):
    source = Files()
    batches = stream(source, num_threads=num_threads, batch_size=16, num_steps=200)
    next(batches)
    count = -1
    while count != len(source.read):  # until nobody reads on
        count = len(source.read)
        time.sleep(0.3)
    # What is begun: those ahead; one that waits; one that is handed over; ours.
    assert count <= (workers.BATCHES_AHEAD + 4) * 16
    assert sum(1 for _ in batches) == 199
    batches.close()
