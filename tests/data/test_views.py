"""Views of evaluation: cut where the definition says, from real photographs, each image once."""

import io

import numpy as np
import pytest
from PIL import Image

from resnext_jax.data.readers import ArraySource, Record
from resnext_jax.data.views import multi_scale, ten_crop, view_batches
from resnext_jax.types import DatasetInfo
from tests.data.archives import PHOTOS

CHINA, FLOWER = PHOTOS  # both 427 x 640


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("image", [CHINA, CHINA.transpose(1, 0, 2).copy(), FLOWER])
def test_ten_crops_are_centre_and_corners_and_their_mirrors(image):
    """224 of 256: the long side becomes floor(640 / 427 * 256) = 383, so that 159 are left beside a crop, 80 before."""
    (crops,) = ten_crop(224, 256, "bicubic").cut(image, (0, 0))
    if image.shape[0] < image.shape[1]:
        whole, bottom, right, top, left = resized(image, 383, 256), 32, 159, 16, 80
    else:
        whole, bottom, right, top, left = resized(image, 256, 383), 159, 32, 80, 16
    assert crops.shape == (10, 224, 224, 3)
    for five, side in ((crops[:5], whole), (crops[5:], whole[:, ::-1])):
        np.testing.assert_array_equal(five[0], side[top : top + 224, left : left + 224])
        np.testing.assert_array_equal(five[1], side[:224, :224])
        np.testing.assert_array_equal(five[2], side[:224, right:])
        np.testing.assert_array_equal(five[3], side[bottom:, :224])
        np.testing.assert_array_equal(five[4], side[bottom:, right:])


def test_five_scales_of_the_resnet_paper():
    """640 / 427 is 10.49 sevenths; of 10 sevenths of each short side the middle is kept."""
    views = multi_scale(224, 256, "bicubic")
    assert views.sort(427, 640) == (7, 10)
    assert views.shapes((7, 10)) == ((1, 224, 320), (1, 256, 365), (1, 384, 548), (1, 480, 685), (1, 640, 914))
    cuts = views.cut(CHINA, (7, 10))
    assert [cut.shape for cut in cuts] == [(*shape, 3) for shape in views.shapes((7, 10))]
    scales = (224, 335, 8), (256, 383, 9), (384, 575, 14), (480, 719, 17), (640, 959, 23)
    for cut, (short, long, left) in zip(cuts, scales, strict=True):
        np.testing.assert_array_equal(cut[0], resized(CHINA, long, short)[:, left : left + cut.shape[2]])


@pytest.mark.parametrize(
    ("size", "sort"),
    [
        ((300, 300), (7, 7)),
        ((301, 300), (7, 7)),
        ((700, 800), (7, 8)),
        ((700, 799), (7, 7)),
        ((800, 700), (8, 7)),
        ((375, 500), (7, 9)),
        ((100, 5000), (7, 14)),
        ((1, 3), (7, 14)),
    ],
)
def test_rectangles_are_of_few_shapes(size, sort):
    """By whole sevenths of the short side, twice as long at most."""
    views = multi_scale(28, 28, "bicubic")
    assert views.sort(*size) == sort
    cuts = views.cut(np.zeros((*size, 3), np.uint8), sort)
    assert [cut.shape[:3] for cut in cuts] == list(views.shapes(sort))
    assert [cut.shape[1] for cut in cuts] == [side * sort[0] // 7 for side in (28, 32, 48, 60, 80)]


class Photos:
    """JPEGs of several shapes; the label of each is its number."""

    def __init__(self, sizes):
        self.files = []
        for number, (height, width) in enumerate(sizes):
            file = io.BytesIO()
            Image.fromarray(CHINA[number : number + height, :width]).save(file, "JPEG")
            self.files.append(file.getvalue())
        self.info = DatasetInfo("photos", len(self.files), tuple(map(str, range(len(self.files)))), None)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return Record(self.files[index], index, self.locate(index))

    def locate(self, index):
        return f"photo {index}"

    def all_labels(self):
        return np.arange(len(self))


SIZES = [(60, 60), (60, 80), (80, 60), (60, 61), (60, 81), (61, 60), (60, 62)]  # 9 sevenths are 77 of 60


@pytest.mark.parametrize("num_threads", [0, 2])
def test_every_image_once_sorted_by_shape(num_threads):
    source, views = Photos(SIZES), multi_scale(28, 28, "bicubic")
    batches = list(view_batches(source, views, batch_size=2, num_threads=num_threads))
    found = [(batch.image[0].shape, batch.label.tolist(), batch.mask.tolist()) for batch in batches]
    assert found == [
        ((2, 1, 28, 28, 3), [0, 3], [1, 1]),
        ((2, 1, 28, 28, 3), [5, 6], [1, 1]),
        ((2, 1, 28, 36, 3), [1, 4], [1, 1]),
        ((2, 1, 36, 28, 3), [2, 0], [1, 0]),
    ]
    pixels = np.asarray(Image.open(io.BytesIO(source.files[4])))
    # 81 * 28 // 60 = 37 columns, of which 36 are kept: the extra one is left away at the left
    np.testing.assert_array_equal(batches[2].image[0][1, 0], resized(pixels, 37, 28)[:, 1:])
    assert not batches[3].image[4][1].any()


def test_processes_share_the_same_batches():
    source, views = Photos(SIZES), multi_scale(28, 28, "bicubic")
    whole = list(view_batches(source, views, batch_size=4))
    parts = [list(view_batches(source, views, batch_size=4, process=(index, 2))) for index in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(batch.label, np.concatenate([first.label, second.label]))
        np.testing.assert_array_equal(batch.mask, np.concatenate([first.mask, second.mask]))
        for array, one, two in zip(batch.image, first.image, second.image, strict=True):
            np.testing.assert_array_equal(array, np.concatenate([one, two]))


def test_images_in_memory():
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 1), np.uint8)
    source = ArraySource("grey", images, np.array([2, 0, 1]), ["a", "b", "c"], "memory")
    (batch,) = view_batches(source, ten_crop(32, 40, "bicubic"), batch_size=4)
    assert batch.image[0].shape == (4, 10, 32, 32, 1)
    assert batch.label.tolist() == [2, 0, 1, 0]
    np.testing.assert_array_equal(batch.image[0][1, 4], images[1, 8:, 8:])
