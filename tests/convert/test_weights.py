"""The table of published weights, against what torchvision and timm say of them."""

import importlib
import math

import pytest

from resnext_jax.convert.weights import find_weights, table
from resnext_jax.errors import UserError

FACEBOOK = {"wsl": "fb_wsl_ig1b_ft_in1k", "ssl": "fb_ssl_yfcc100m_ft_in1k", "swsl": "fb_swsl_ig1b_ft_in1k"}


def rows(their):
    return [row for row in table() if row.format == their]


def test_torchvisions(torchvision):
    known = {row.model for row in rows("torchvision") if row.name not in FACEBOOK}
    assert {"resnet50", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "vgg16_bn", "densenet121"} <= known
    for model in known:
        theirs = {
            weights.name: weights
            for weights in torchvision.models.get_model_weights(model)
            if weights.name != "IMAGENET1K_FEATURES"  # of a VGG without its end
        }
        ours = {row.name: row for row in rows("torchvision") if row.model == model and row.name not in FACEBOOK}
        assert ours.keys() == theirs.keys()
        for name, row in ours.items():
            transforms = theirs[name].transforms()
            assert theirs[name].url.endswith(f"-{row.sha256}.pth")
            assert ([row.image_size_px], [row.resize_px]) == (transforms.crop_size, transforms.resize_size)
            assert row.interpolation == transforms.interpolation.value
            assert (list(row.mean), list(row.std)) == (transforms.mean, transforms.std)


def test_timms(torchvision):
    get_pretrained_cfg = importlib.import_module("timm.models").get_pretrained_cfg

    facebook = [row for row in rows("torchvision") if row.name in FACEBOOK]
    assert {(row.model, row.name) for row in facebook} >= {
        *(("resnext101_32x8d", name) for name in FACEBOOK),
        *(("resnext101_32x16d", name) for name in FACEBOOK),
        *((model, name) for model in ("resnext50_32x4d", "resnext101_32x4d") for name in ("ssl", "swsl")),
    }
    for row in (*rows("timm"), *facebook):
        config = get_pretrained_cfg(f"{row.model}.{FACEBOOK.get(row.name, row.name)}")
        size_px = (config.test_input_size or config.input_size)[1]
        assert row.image_size_px == size_px
        assert row.resize_px == math.floor(size_px / (config.test_crop_pct or config.crop_pct))
        assert (row.interpolation, row.mean, row.std) == (config.interpolation, config.mean, config.std)
        assert row.sha256 == "-" or config.url.endswith(f"-{row.sha256}.pth")


def test_found_by_checksum_or_name():
    v2 = find_weights("torchvision", "resnext50_32x4d", "1a0047aa" + 56 * "0", None)
    assert (v2.name, v2.resize_px, v2.interpolation) == ("IMAGENET1K_V2", 232, "bilinear")
    assert v2.preprocessing() == {
        "image_size_px": 224,
        "resize_px": 232,
        "interpolation": "bilinear",
        "mean": (123.675, 116.28, 103.53),
        "std": (58.395, 57.12, 57.375),
    }
    other = 64 * "0"
    a1h = find_weights("timm", "resnext50_32x4d", other, "a1h_in1k")
    assert (a1h.image_size_px, a1h.resize_px, a1h.interpolation) == (288, 288, "bicubic")
    # What nothing is known of wants what is usual there.
    for their, interpolation in (("torchvision", "bilinear"), ("timm", "bicubic"), ("torch7", "bicubic")):
        row = find_weights(their, "resnext50_8x14d", other, None)
        assert (row.name, row.image_size_px, row.resize_px, row.interpolation) == ("", 224, 256, interpolation)
    with pytest.raises(UserError, match=r"no weights of torchvision's resnext50_8x14d are known"):
        find_weights("torchvision", "resnext50_8x14d", other, "IMAGENET1K_V1")
