"""ResNeXt-50 (8x14d) on ImageNet-1K: Table 3, top-1 error 22.3 %.

python main.py --config=configs/resnext50_8x14d.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnext50_8x14d"
    return config
