"""ResNeXt-101 (32x4d) on ImageNet-5K: Table 6, top-1 / top-5 error 40.1 / 15.1 % 5K-way, 22.2 / 5.7 % 1K-way.

python main.py --config=configs/resnext101_32x4d_imagenet5k.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet5k()
    config.model.name = "resnext101_32x4d"
    return config
