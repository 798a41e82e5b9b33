"""ResNet-50 on ImageNet-5K: Table 6, top-1 / top-5 error 45.5 / 19.4 % 5K-way, 27.1 / 8.2 % 1K-way.

python main.py --config=configs/resnet50_imagenet5k.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet5k()
    config.model.name = "resnet50"
    return config
