"""ResNeXt-50 (32x4d) on ImageNet-5K: Table 6, top-1 / top-5 error 42.3 / 16.8 % 5K-way, 24.4 / 6.6 % 1K-way.

python main.py --config=configs/resnext50_32x4d_imagenet5k.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet5k()
    config.model.name = "resnext50_32x4d"
    return config
