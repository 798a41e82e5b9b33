"""ResNet-50 without residual connections: the ablation of section 5.1, top-1 error 31.2 % (with them 23.9 %).

python main.py --config=configs/resnet50_no_shortcut.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnet50"
    config.model.shortcut = False
    return config
