"""ResNet-101 (1x64d) on ImageNet-1K: Tables 3 and 4, top-1 / top-5 error 22.0 / 6.0 %.

python main.py --config=configs/resnet101.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnet101"
    return config
