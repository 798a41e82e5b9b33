"""ResNeXt-50 (32x4d) on ImageNet-1K: Table 3, top-1 error 22.2 %.

python main.py --config=configs/resnext50_32x4d.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnext50_32x4d"
    return config
