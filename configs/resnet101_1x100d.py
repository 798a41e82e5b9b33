"""ResNet-101, wider (1x100d) on ImageNet-1K: Table 4, top-1 / top-5 error 21.3 / 5.7 %.

python main.py --config=configs/resnet101_1x100d.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnet101_1x100d"
    return config
