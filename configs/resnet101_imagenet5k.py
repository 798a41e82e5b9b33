"""ResNet-101 on ImageNet-5K: Table 6, top-1 / top-5 error 42.4 / 16.9 % 5K-way, 24.2 / 6.8 % 1K-way.

python main.py --config=configs/resnet101_imagenet5k.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet5k()
    config.model.name = "resnet101"
    return config
