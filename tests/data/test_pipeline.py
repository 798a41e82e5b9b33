"""pipeline.py: the same global batches on any number of processes and threads, from any step, in any epoch."""

import contextlib
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from resnext_jax.data import decode, pipeline
from resnext_jax.data.crops import Crop, crop_rng
from resnext_jax.data.folder import FolderSource
from resnext_jax.data.order import SMALL_NUM_IMAGES, train_indices
from resnext_jax.data.readers import ArraySource
from resnext_jax.data.sources import open_source
from resnext_jax.errors import UserError


def numbered(num_images: int = 50) -> ArraySource:
    """2 x 2 grey images whose pixels and label are their number."""
    numbers = np.arange(num_images)
    images = np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (num_images, 2, 2, 1))
    return ArraySource("numbered", images, numbers, [str(n) for n in numbers], "labels")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> FolderSource:
    """20 JPEGs cut from two real photographs, in two classes."""
    root = tmp_path_factory.mktemp("photos")
    for label, photo in enumerate(load_sample_images().images):
        (root / str(label)).mkdir()
        for i in range(10):
            cut = Image.fromarray(photo[10 * i : 10 * i + 150 + 5 * i, 20 * i : 20 * i + 200])
            cut.save(root / str(label) / f"{i}.jpg", quality=95)
    return FolderSource("folder", str(root), ["0", "1"])


WHOLE, RANDOM = Crop("none", 2, 2), Crop("random_sized", 32, 37)


def train(source, crop=WHOLE, start_step=0, num_steps=10, **changes):
    arguments = {"batch_size": 8, "seed": 3, "steps": range(start_step, num_steps)} | changes
    return list(pipeline.train_batches(source, crop, **arguments))


def evaluate(source, crop=WHOLE, **changes):
    return list(pipeline.evaluation_batches(source, crop, **{"batch_size": 8, **changes}))


def assert_equal_batches(batches, others):
    for batch, other in itertools.zip_longest(batches, others):
        for field in ("image", "label", "mask"):
            np.testing.assert_array_equal(getattr(batch, field), getattr(other, field))


def joined(per_process):
    """The global batches, from each process's list of local ones, in the order of the processes."""
    return [
        type(parts[0])(
            *(np.concatenate([getattr(part, field) for part in parts]) for field in ("image", "label", "mask"))
        )
        for parts in zip(*per_process, strict=True)
    ]


# ---- order


def test_every_epoch_is_a_permutation_of_its_own():
    # 50 images and batches of 8: the fourth epoch ends at position 200, within the 25th batch's end
    labels = np.concatenate([batch.label for batch in train(numbered(), num_steps=25)])
    epochs = labels.reshape(4, 50)
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other_seed = np.concatenate([batch.label for batch in train(numbered(), num_steps=25, seed=4)])
    assert (other_seed.reshape(4, 50) != epochs).any(axis=1).all()


def test_a_batch_larger_than_the_data_set_spans_epochs():
    (batch,) = train(numbered(5), batch_size=15, num_steps=1)
    assert [sorted(epoch) for epoch in batch.label.reshape(3, 5)] == [[0, 1, 2, 3, 4]] * 3


def chi_square(counts: np.ndarray) -> float:
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


def test_the_shuffle_of_a_small_set_is_uniform():
    """Over many epochs each image stands at each place equally often, and so does each successor."""
    order = train_indices(10, 0, np.arange(10 * 2000)).reshape(2000, 10)
    places, successors = np.zeros((10, 10)), np.zeros((10, 10))
    for place in range(10):
        np.add.at(places[place], order[:, place], 1)
        if place:
            np.add.at(successors, (order[:, place - 1], order[:, place]), 1)
    assert chi_square(places) < 135  # p = 0.0001 at 81 degrees of freedom
    assert chi_square(successors[~np.eye(10, dtype=bool)]) < 145  # some 89 degrees of freedom


@pytest.mark.slow
def test_the_shuffle_of_a_large_set_is_uniform():
    """Where images go, what follows them, and where they go in the next epoch, in tenths of the set."""
    num_images = 70_000
    assert num_images > SMALL_NUM_IMAGES
    first, second = train_indices(num_images, 0, np.arange(2 * num_images)).reshape(2, num_images)
    for order in (first, second):
        np.testing.assert_array_equal(np.sort(order), np.arange(num_images))
    tenths = num_images // 10
    for a, b in ((np.arange(num_images), first), (first[:-1], first[1:]), (first, second)):
        counts = np.zeros((10, 10))
        np.add.at(counts, (a // tenths, b // tenths), 1)
        assert chi_square(counts) < 135
    assert abs(np.abs(np.diff(first)).mean() / num_images - 1 / 3) < 0.01


def seed_seq(seed: int, count: int) -> list[int]:
    """C++'s std::seed_seq{seed}.generate of `count` words, below 39, by the standard's definition."""
    mask, b = 2**32 - 1, [0x8B8B8B8B] * count
    t = 3 if count >= 7 else (count - 1) // 2
    p = (count - t) // 2
    q, m = p + t, max(2, count)
    for k in range(m + count):
        x = [b[k % count], b[(k + p) % count], b[(k - 1) % count]]
        if k < m:
            mixed = x[0] ^ x[1] ^ x[2]
            r1 = 1664525 * (mixed ^ mixed >> 27) & mask
            r2 = r1 + (1 if k == 0 else k % count + (seed if k == 1 else 0)) & mask
            b[(k + p) % count] = b[(k + p) % count] + r1 & mask
            b[(k + q) % count] = b[(k + q) % count] + r2 & mask
        else:
            mixed = sum(x) & mask
            r1 = 1566083941 * (mixed ^ mixed >> 27) & mask
            r2 = r1 - k % count & mask
            b[(k + p) % count] ^= r1
            b[(k + q) % count] ^= r2
        b[k % count] = r2
    return b


def simon(index: int, bits: int, keys: list[int]) -> int:
    """A Feistel network of Simon's rounds (eprint 2013/404) on numbers of `bits` bits."""
    word = bits // 2
    mask = 2**word - 1

    def rotated(x: int, by: int) -> int:
        return (x << by | x >> (word - by)) & mask

    left, right = index >> word, index & mask
    for key in keys:
        left, right = right, left ^ (rotated(right, 1) & rotated(right, 8)) ^ rotated(right, 2) ^ key & mask
    return left << word | right


@pytest.mark.parametrize(("num_images", "bits"), [(1_281_167, 22), (14_000_000, 24)])
@pytest.mark.parametrize("step", [0, 400_000])
def test_the_order_by_its_definition(num_images, bits, step):
    """Encrypt the place in the epoch until an index of an image comes out; the key is that of (seed, epoch)."""
    expected = []
    for position in range(step * 256, step * 256 + 256):
        epoch, index = divmod(position, num_images)
        key = int(np.random.SeedSequence((5, epoch)).generate_state(1, np.uint64)[0]) & 0xFFFFFFFF
        keys = seed_seq(key, 16)
        while (index := simon(index, bits, keys)) >= num_images:
            pass
        expected.append(index)
    found = train_indices(num_images, 5, step * 256 + np.arange(256))
    assert found.tolist() == expected
    assert len(set(expected)) == 256


def test_the_order_needs_no_memory():
    tracemalloc.start()
    try:
        train_indices(14_000_000, 1, 400_000 * 256 + np.arange(256))
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("num_images", [65_536, 65_537, 65_538])
@pytest.mark.slow
def test_no_image_is_left_out_at_powers_of_two(num_images):
    for epoch in range(2):
        order = train_indices(num_images, 3, epoch * num_images + np.arange(num_images))
        np.testing.assert_array_equal(np.sort(order), np.arange(num_images))


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_hold_slices_of_the_global_batch(photos, process_count):
    def per_process(run, source, *arguments):
        return [run(source, *arguments, process=(index, process_count)) for index in range(process_count)]

    assert_equal_batches(joined(per_process(train, numbered())), train(numbered()))
    assert_equal_batches(joined(per_process(evaluate, numbered())), evaluate(numbered()))
    assert_equal_batches(joined(per_process(train, photos, RANDOM, 0, 3)), train(photos, RANDOM, 0, 3))
    assert_equal_batches(joined(per_process(evaluate, photos, RANDOM)), evaluate(photos, RANDOM))


def test_threads_change_nothing(photos):
    one = train(photos, RANDOM, num_steps=6, num_threads=0)
    for num_threads in (1, 3, 4, 40):
        assert_equal_batches(train(photos, RANDOM, num_steps=6, num_threads=num_threads), one)
    one = evaluate(photos, RANDOM, num_threads=0)
    assert len(one) == 3
    for num_threads in (1, 2, 4):
        assert_equal_batches(evaluate(photos, RANDOM, num_threads=num_threads), one)


def test_starting_later_yields_the_rest(photos):
    for source, crop in ((numbered(), WHOLE), (photos, RANDOM)):
        whole = train(source, crop, num_steps=9)
        assert len(whole) == 9
        assert_equal_batches(train(source, crop, start_step=4, num_steps=9), whole[4:])
        assert train(source, crop, start_step=9, num_steps=9) == []


# ---- pixels


def test_dtypes_and_shapes():
    (batch, *_) = train(numbered(), process=(1, 2))
    assert (batch.image.dtype, batch.label.dtype, batch.mask.dtype) == (np.uint8, np.int32, np.float32)
    assert batch.image.shape == (4, 2, 2, 1)
    assert (batch.mask == 1).all()
    np.testing.assert_array_equal(batch.image[:, 0, 0, 0], batch.label)


def test_each_image_has_crop_numbers_of_its_own(photos):
    """The crop of (seed, step, row) is the one that its key gives, and no two images share a key."""
    batch = train(photos, RANDOM, num_steps=3)[2]
    for row, index in enumerate(train_indices(20, 3, 2 * 8 + np.arange(8)).tolist()):
        image = decode.decode(photos[index].image, "photo")
        rng = np.random.Generator(np.random.Philox(key=3, counter=[0, 0, row, 2]))
        np.testing.assert_array_equal(batch.image[row], decode.random_sized_crop(image, 32, rng))
    keys = [(seed, step, row) for seed in (0, 1) for step in (0, 1, 2) for row in (0, 1, 2)]
    assert len({crop_rng(*key).integers(1 << 63) for key in keys}) == len(keys)


def test_array_images_can_be_cropped_too():
    source = open_source("synthetic", "train", num_images=20, num_classes=2, image_size_px=16)
    (batch,) = train(source, Crop("random_sized", 8), num_steps=1)
    assert batch.image.shape == (8, 8, 8, 3)
    assert batch.image.any()


# ---- evaluation


def test_evaluation_counts_every_image_once_in_order():
    batches = evaluate(numbered())
    assert len(batches) == 7  # 50 = 6 * 8 + 2
    labels, masks = np.concatenate([b.label for b in batches]), np.concatenate([b.mask for b in batches])
    np.testing.assert_array_equal(labels[masks == 1], np.arange(50))
    last = batches[-1]
    np.testing.assert_array_equal(last.mask, [1, 1, 0, 0, 0, 0, 0, 0])
    assert not last.image[2:].any()
    assert not last.label[2:].any()


@pytest.mark.parametrize("process_count", [1, 2, 4, 8])
def test_evaluation_counts_every_image_once_on_any_number_of_hosts(process_count):
    for num_images in (1, 7, 8, 9, 50):
        hosts = [evaluate(numbered(num_images), process=(index, process_count)) for index in range(process_count)]
        # -(-n // 8) global batches on every host, or one would wait for another that has none left
        assert [len(host) for host in hosts] == [-(-num_images // 8)] * process_count
        counted = [
            (label, int(image[0, 0, 0]))
            for batches in zip(*hosts, strict=True)
            for batch in batches
            for label, image, mask in zip(batch.label.tolist(), batch.image, batch.mask, strict=True)
            if mask
        ]
        assert counted == [(number, number) for number in range(num_images)]


def test_a_process_with_nothing_left_yields_padding():
    batches = evaluate(numbered(), process=(3, 4))
    assert len(batches) == 7
    assert not batches[-1].mask.any()
    assert batches[-1].image.shape == (2, 2, 2, 1)


def test_evaluation_takes_the_center(photos):
    (first, *_) = evaluate(photos, RANDOM)
    image = np.asarray(Image.open(io.BytesIO(photos[5].image)))
    np.testing.assert_array_equal(first.image[5], decode.center_crop(image, 32, 37))


def test_resized_whole_for_training_as_for_evaluation(photos):
    (first, *_) = train(photos, Crop("resize", 32))
    (same, *_) = evaluate(photos, Crop("resize", 32, 32))
    for row, record in enumerate(photos[int(index)] for index in train_indices(len(photos), 3, np.arange(8))):
        whole = decode.center_crop(np.asarray(Image.open(io.BytesIO(record.image))), 32, 32)
        np.testing.assert_array_equal(first.image[row], whole)
    np.testing.assert_array_equal(same.image[5], decode.center_crop(decode.decode(photos[5].image, ""), 32, 32))


# ---- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process": (0, 3)}, "batch_size 8 cannot be shared evenly by 3 process"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"crop": Crop("none", 4, 4)}, r"images of 2x2 px.*data.image_size_px = 4.*--config.data.image_size_px=2"),
        ({"crop": Crop("random_size", 2, 2)}, "unknown crop 'random_size'. Did you mean 'random_sized'"),
        ({"process": (2, 2)}, r"process_index 2 must be in \[0, 2\)"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        train(numbered(), **changes)
    with pytest.raises(UserError, match=message):
        evaluate(numbered(), **changes)


def test_more_arguments_that_do_not_fit(photos):
    with pytest.raises(UserError, match="seed -1 is negative"):
        train(numbered(), seed=-1)
    with pytest.raises(UserError, match=r"images of many sizes.*--config.data.crop=random_sized"):
        train(photos)
    with pytest.raises(UserError, match=r"data.resize_px = 200 is smaller than .* 224.*resize_px=256"):
        evaluate(photos, Crop("random_sized", 224, 200))


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_broken_image_is_named(tmp_path, num_threads):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no image")
    source = FolderSource("folder", str(tmp_path), ["a"])
    with pytest.raises(UserError, match=r"a/broken\.jpg is not a readable image"):
        train(source, Crop("random_sized", 8), num_threads=num_threads)


# ---- ends


def input_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


def test_stopping_early_leaves_no_thread(photos):
    stream = pipeline.train_batches(photos, RANDOM, batch_size=8, seed=0, steps=range(10**9))
    next(stream)
    assert input_threads()
    stream.close()
    for thread in input_threads():
        thread.join(timeout=10)
    assert not input_threads()


@pytest.mark.slow
def test_ctrl_c_ends_the_process():
    code = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background inherits SIG_IGN
        "from resnext_jax.data import crops, pipeline, sources\n"
        "source = sources.open_source('synthetic', 'train', image_size_px=64)\n"
        "crop = crops.Crop('random_sized', 64)\n"
        "stream = pipeline.train_batches(source, crop, batch_size=64, seed=0, steps=range(10**9))\n"
        "print(next(stream).image.shape, flush=True)\n"
        "for batch in stream: pass\n"
    )
    root = os.path.join(os.path.dirname(__file__), "..", "..")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    ) as run:
        try:
            assert run.stdout.readline() == b"(64, 64, 64, 3)\n"
            errors = None
            for _ in range(20):
                # Again, as a person would: Python drops a KeyboardInterrupt that arrives inside JAX's hook for the
                # garbage collector ("Exception ignored in _xla_gc_callback").
                run.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    _, errors = run.communicate(timeout=1)
                    break
        finally:
            run.kill()
    assert errors is not None
    assert b"KeyboardInterrupt" in errors
