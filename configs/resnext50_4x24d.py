"""ResNeXt-50 (4x24d) on ImageNet-1K: Table 3, top-1 error 22.6 %.

python main.py --config=configs/resnext50_4x24d.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnext50_4x24d"
    return config
