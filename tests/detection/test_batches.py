"""sizes.py, order.py, batches.py: resizing, order, boxes and padding; each against a calculation of its own."""

import collections
import json

import data_sets
import numpy as np
import pytest
from PIL import Image

from resnext_jax.detection import batches, sources
from resnext_jax.detection.order import SizedOrder
from resnext_jax.detection.sizes import Sizes
from resnext_jax.errors import UserError

SMALL = Sizes(60, 100, ((64, 80), (64, 112), (80, 64), (112, 64)))


@pytest.fixture
def source(tmp_path):
    data_sets.write(tmp_path, "annotations/train.json", data_sets.content(12))
    return sources.open_source(str(tmp_path), "train")


def train(source, *, num_steps=6, start=0, **changes):
    arguments = {"batch_size": 4, "seed": 0, "steps": range(start, num_steps)} | changes
    return list(batches.train_batches(source, SMALL, **arguments))


# height, width; scale, new height and width of py-faster-rcnn; size of the batch
RESIZED = [
    ((480, 640), 1.25, (600, 800), (608, 816)),
    ((640, 480), 1.25, (800, 600), (816, 608)),
    ((427, 640), 600 / 427, (600, 899), (608, 1008)),
    ((480, 632), 1.25, (600, 790), (608, 816)),
    ((300, 640), 1000 / 640, (469, 1000), (608, 1008)),
    ((640, 360), 1000 / 640, (1000, 562), (1008, 608)),  # 562.5 rounds to the even number
    ((500, 500), 1.2, (600, 600), (608, 816)),
    ((1200, 2000), 0.5, (600, 1000), (608, 1008)),
    ((601, 1002), 600 / 601, (600, 1000), (608, 1008)),  # 1000.3 px are not too long
]


@pytest.mark.parametrize(("size", "scale", "resized", "canvas"), RESIZED)
def test_images_are_resized_as_in_py_faster_rcnn(size, scale, resized, canvas):
    sizes, size_px = Sizes(), np.array([size])
    assert sizes.scale(size_px)[0] == pytest.approx(scale, rel=1e-12)
    assert tuple(sizes.resized(size_px)[0]) == resized
    assert sizes.canvases_px[sizes.canvas(size_px)[0]] == canvas


def test_an_image_without_a_size_is_told():
    sizes = Sizes(60, 100, ((64, 80),))
    with pytest.raises(UserError, match=r"1 of 2 images fit into none .* the first is 90 x 60 px, resized 90 x 60"):
        sizes.canvas(np.array([[60, 80], [60, 90]]))


def order_of(counts, batch_size, seed=0) -> SizedOrder:
    sizes = np.repeat(np.arange(len(counts)), counts)[np.random.default_rng(9).permutation(sum(counts))]
    return SizedOrder(sizes, num_sizes=len(counts), batch_size=batch_size, seed=seed)


@pytest.mark.parametrize(("counts", "batch_size"), [((70, 41, 9, 3), 8), ((5, 0, 2, 1), 4), ((3, 1), 16), ((40,), 8)])
def test_every_image_comes_equally_often(counts, batch_size):
    order = order_of(counts, batch_size)
    num_epochs = 50
    steps = range(num_epochs * sum(counts) // batch_size)
    seen = collections.Counter(index for step in steps for index in order.at(step).images.tolist())
    of_size = [[seen[index] for index in members.tolist()] for members in order.members]
    for own in filter(None, of_size):
        assert max(own) - min(own) <= 1 + batch_size // len(own)
        assert abs(np.mean(own) - num_epochs) <= batch_size * len(counts) / len(own)


def test_each_size_passes_through_its_images_before_repeating():
    order = order_of((70, 41, 9, 3), 8)
    streams = collections.defaultdict(list)
    for step in range(200):
        chosen = order.at(step)
        assert len(chosen.images) == 8
        streams[chosen.size] += chosen.images.tolist()
    for size, stream in streams.items():
        members = order.members[size].tolist()
        passes = [stream[start : start + len(members)] for start in range(0, len(stream), len(members))]
        assert all(sorted(own) == members for own in passes[:-1])
        assert len({tuple(own) for own in passes[:-1]}) > 1  # every epoch has its own order


def test_an_epoch_has_its_batches_and_mixes_the_sizes():
    order = order_of((64, 64), 8)
    epochs = [[order.at(step).size for step in range(start, start + 16)] for start in (0, 16, 32)]
    assert all(sorted(own) == [0] * 8 + [1] * 8 for own in epochs)
    assert len({tuple(own) for own in epochs}) == 3


def test_the_order_is_a_function_of_seed_and_step():
    early, late = order_of((70, 41, 9, 3), 8), order_of((70, 41, 9, 3), 8)
    expected = {step: early.at(step) for step in range(100)}
    for step in (99, 0, 57):
        assert late.at(step).size == expected[step].size
        np.testing.assert_array_equal(late.at(step).images, expected[step].images)
    other = order_of((70, 41, 9, 3), 8, seed=1)
    assert any(other.at(step).images.tolist() != own.images.tolist() for step, own in expected.items())
    assert len(early.at(10**9).images) == 8


def test_a_batch_holds_images_boxes_and_padding(source):
    for step, batch in enumerate(train(source, num_steps=9)):
        assert batch.image.shape[1:3] in SMALL.canvases_px
        assert (batch.image.dtype, batch.boxes.dtype, batch.label.dtype) == (np.uint8, np.float32, np.int32)
        assert batch.boxes.shape == (4, 100, 4)
        np.testing.assert_array_equal(batch.mask, 1)
        for row, index in enumerate(batch.image_id.tolist()):
            height, width = source.data.size_px[index].tolist()
            scale = min(60 / min(height, width), 100 / max(height, width))
            assert batch.scale[row] == np.float32(scale)
            new = (round(height * scale), round(width * scale))
            assert tuple(batch.size_px[row]) == new
            flip = np.random.Generator(np.random.Philox(key=0, counter=[0, 0, row, step])).random() < 0.5
            picture = Image.fromarray(data_sets.pixels(height, width, index + 1))
            if flip:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            expected = np.asarray(picture.resize(new[::-1], Image.Resampling.BILINEAR), np.int64)
            image = batch.image[row].astype(np.int64)
            assert abs(image[: new[0], : new[1]] - expected).max() <= 1
            assert image[new[0] :].max(initial=0) == image[:, new[1] :].max(initial=0) == 0
            count = index % 3
            assert batch.label[row].tolist() == [2, 1][:count] + [0] * (100 - count)
            for place in range(count):
                x, y = 2 + 11 * place, 3
                corners = [width - x - 10, y, width - x - 1, y + 7] if flip else [x, y, x + 9, y + 7]
                np.testing.assert_allclose(batch.boxes[row, place], scale * np.array(corners), rtol=1e-6)
            assert not batch.boxes[row, count:].any()


def test_images_without_boxes_and_both_mirrors_occur(source):
    seen = collections.Counter()
    for step, batch in enumerate(train(source, num_steps=30)):
        for row, index in enumerate(batch.image_id.tolist()):
            flip = np.random.Generator(np.random.Philox(key=0, counter=[0, 0, row, step])).random() < 0.5
            seen[index % 3 > 0, bool(flip)] += 1
    assert set(seen) == {(boxes, flip) for boxes in (True, False) for flip in (True, False)}


def test_boxes_are_clipped_and_empty_ones_left_out(tmp_path):
    content = data_sets.content(3)
    boxes = [[-5, -6, 10, 10], [40, 60, 100, 100], [-20, 3, 10, 8], [3, 3, 0, 5], [1, 1, 0.5, 0.5]]
    content["annotations"] = [
        {"id": 100 + place, "image_id": 2, "category_id": 3, "bbox": box, "iscrowd": int(place == 1)}
        for place, box in enumerate(boxes)
    ]
    source = sources.open_source(str(data_sets.write(tmp_path, "annotations/train.json", content)), "train")
    batch = next(
        batch
        for step in range(20)
        for batch in train(source, start=step, num_steps=step + 1, batch_size=1)
        if batch.image_id[0] == 1
        and np.random.Generator(np.random.Philox(key=0, counter=[0, 0, 0, step])).random() >= 0.5
    )
    scale = 60 / 48  # 64 x 48 px
    expected = scale * np.array([[0, 0, 4, 3], [40, 60, 47, 63], [1, 1, 1, 1]])
    np.testing.assert_allclose(batch.boxes[0, :3], expected, rtol=1e-6)
    assert batch.label[0, :4].tolist() == [1, 1, 1, 0]
    assert batch.crowd[0, :4].tolist() == [False, True, False, False]


def test_more_boxes_than_a_batch_has_room_for_are_told(source):
    with pytest.raises(UserError, match=r"4 of 12 images have more than max_boxes = 1 boxes, up to 2 \(train/0002"):
        train(source, max_boxes=1)
    assert train(source, num_steps=1, max_boxes=2)[0].boxes.shape == (4, 2, 4)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("process_count", [1, 2])
def test_batches_are_equal_for_any_threads_and_processes(source, num_threads, process_count):
    parts = [train(source, num_threads=num_threads, process=(k, process_count)) for k in range(process_count)]
    for whole, *own in zip(train(source, num_threads=0), *parts, strict=True):
        for name, array in vars(whole).items():
            np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in own]), array)


def test_a_resumed_run_gets_the_same_batches(source):
    for late, early in zip(train(source, start=5, num_steps=8), train(source, num_steps=8)[5:], strict=True):
        for name, array in vars(early).items():
            np.testing.assert_array_equal(getattr(late, name), array)


@pytest.mark.parametrize("process_count", [1, 2])
def test_the_evaluation_sees_every_image_once(source, process_count):
    parts = [
        list(batches.evaluation_batches(source, SMALL, batch_size=6, process=(k, process_count)))
        for k in range(process_count)
    ]
    assert len({len(part) for part in parts}) == 1
    rows = [(batch, row) for part in parts for batch in part for row in range(6 // process_count)]
    seen = [int(batch.image_id[row]) for batch, row in rows if batch.mask[row] == 1]
    assert sorted(seen) == list(range(12))
    for batch, row in rows:
        if batch.mask[row] == 0:
            assert not batch.image[row].any()
            assert (batch.size_px[row] > 0).all()
            assert batch.scale[row] == 1
        else:
            height, width = source.data.size_px[batch.image_id[row]].tolist()
            picture = Image.fromarray(data_sets.pixels(height, width, batch.image_id[row] + 1))
            new = batch.size_px[row].astype(int)
            expected = np.asarray(picture.resize((new[1], new[0]), Image.Resampling.BILINEAR), np.int64)
            assert abs(batch.image[row, : new[0], : new[1]].astype(np.int64) - expected).max() <= 1


def test_one_image_is_prepared_as_in_an_evaluation(source):
    [one] = [batch for batch in batches.evaluation_batches(source, SMALL, batch_size=1) if batch.image_id[0] == 1]
    single = batches.single(data_sets.pixels(64, 48, 2), SMALL)
    for name in ("image", "size_px", "scale", "mask"):
        np.testing.assert_array_equal(getattr(single, name), getattr(one, name))


def test_an_image_that_changed_its_size_is_told(source, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "train/0004.png")
    with pytest.raises(UserError, match=r"0004\.png has 9 x 9 pixels, and the annotations say 48 x 64"):
        train(source)


def test_a_batch_that_processes_cannot_share_is_told(source):
    with pytest.raises(UserError, match="cannot be shared evenly by 3"):
        train(source, process=(0, 3))


def test_a_negative_seed_is_told(source):
    with pytest.raises(UserError, match="seed -1 is negative"):
        train(source, seed=-1)


@pytest.mark.slow
def test_memory_stays_flat_over_mixed_sizes(source):
    def resident_bytes() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    stream = batches.train_batches(source, Sizes(), batch_size=2, seed=0, steps=range(160))
    shapes, resident = set(), []
    for batch in stream:
        shapes.add(batch.image.shape)
        resident.append(resident_bytes())
    assert len(shapes) == 3
    assert max(resident[80:]) < max(resident[20:80]) + 10e6  # one batch has 3 MB


def test_batches_of_a_file_that_names_few_images_repeat_them(tmp_path):
    content = data_sets.content(2)
    data_sets.write(tmp_path, "annotations/train.json", content)
    assert len(json.loads((tmp_path / "annotations/train.json").read_text())["images"]) == 2
    source = sources.open_source(str(tmp_path), "train")
    batch = train(source, num_steps=1)[0]
    assert len(set(batch.image_id.tolist())) == 1
    assert len(batch.mask) == 4
