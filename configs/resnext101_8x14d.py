"""ResNeXt-101 (8x14d) on ImageNet-1K: Table 3, top-1 error 21.3 %.

python main.py --config=configs/resnext101_8x14d.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnext101_8x14d"
    return config
