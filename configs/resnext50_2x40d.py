"""ResNeXt-50 (2x40d) on ImageNet-1K: Table 3, top-1 error 23.0 %.

python main.py --config=configs/resnext50_2x40d.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnext50_2x40d"
    return config
