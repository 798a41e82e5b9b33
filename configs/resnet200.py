"""ResNet-200, pre-activated (He et al. 2016), on ImageNet-1K: Table 4, top-1 / top-5 error 21.7 / 5.8 %.

python main.py --config=configs/resnet200.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnet200"
    return config
