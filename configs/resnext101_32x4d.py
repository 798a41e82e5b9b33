"""ResNeXt-101 (32x4d) on ImageNet-1K: Tables 3 and 4, top-1 / top-5 error 21.2 / 5.6 %.

python main.py --config=configs/resnext101_32x4d.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnext101_32x4d"
    return config
