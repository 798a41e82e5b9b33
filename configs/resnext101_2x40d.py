"""ResNeXt-101 (2x40d) on ImageNet-1K: Table 3, top-1 error 21.7 %.

python main.py --config=configs/resnext101_2x40d.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnext101_2x40d"
    return config
