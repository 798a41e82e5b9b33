"""ResNeXt-50 (32x4d) without residual connections: section 5.1, top-1 error 26.1 % (with them 22.2 %).

python main.py --config=configs/resnext50_32x4d_no_shortcut.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnext50_32x4d"
    config.model.shortcut = False
    return config
