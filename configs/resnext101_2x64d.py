"""ResNeXt-101 (2x64d) on ImageNet-1K: Table 4, top-1 / top-5 error 20.7 / 5.5 %.

python main.py --config=configs/resnext101_2x64d.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnext101_2x64d"
    return config
