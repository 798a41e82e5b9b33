"""ResNet-50 (1x64d) on ImageNet-1K: Table 3, top-1 error 23.9 %.

python main.py --config=configs/resnet50.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnet50"
    return config
