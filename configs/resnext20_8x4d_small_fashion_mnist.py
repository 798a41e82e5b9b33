"""The quickstart's network on the whole of Fashion-MNIST (60,000 images); not in the paper.

The idx files are found in --config.data.dir=DIR, or where Debian's package dataset-fashion-mnist puts them.

    python main.py --config=configs/resnext20_8x4d_small_fashion_mnist.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    return common.fashion_mnist()
