"""ResNeXt-50 (32x4d) by procedure A3 of "ResNet strikes back" (100 epochs at 160 px); not the paper's.

    python main.py --config=configs/resnext50_32x4d_a3.py

Published for this network: top-1 / top-5 accuracy 79.3 / 94.3 % (timm, results-imagenet.csv, resnext50_32x4d.a3_in1k).
Source: Wightman, Touvron and Jegou 2021 (arXiv 2110.00476), Table 2, as transcribed in mmpretrain's configs;
docs/recipes.md lists what differs.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.strikes_back()
    config.model.name = "resnext50_32x4d"
    config.num_epochs = 100.0
    config.learning_rate = 8e-3
    config.weight_decay = 0.02
    config.target_threshold = 0.2
    config.data.train_size_px = 160
    config.augment.magnitude = 6
    config.augment.mixup_alpha = 0.1
    return config
