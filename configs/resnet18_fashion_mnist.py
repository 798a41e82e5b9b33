"""ResNet-18 on Fashion-MNIST at 96 px, grey: the network as it is, images large enough for it; not in the paper.

The idx files are found in --config.data.dir=DIR, or where Debian's package dataset-fashion-mnist puts them.

    python main.py --config=configs/resnet18_fashion_mnist.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.fashion_mnist()
    config.model.name = "resnet18"
    config.data.image_size_px = config.data.resize_px = 96
    config.data.crop = "resize"
    config.augment.pad_px = 0
    return config
