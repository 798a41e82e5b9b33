"""ResNeXt-50 (32x4d) by procedure A2 of "ResNet strikes back" (300 epochs); not the paper's.

    python main.py --config=configs/resnext50_32x4d_a2.py

Published for this network: 81.3 % top-1 at 288 px, whole (timm, results-imagenet.csv, resnext50_32x4d.a2_in1k): in our
terms --config.data.image_size_px=288 --config.data.resize_px=288 of an evaluation. Source: Wightman, Touvron and Jegou
2021 (arXiv 2110.00476), Table 2, as transcribed in mmpretrain's configs; docs/recipes.md lists what differs.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.strikes_back()
    config.model.name = "resnext50_32x4d"
    config.num_epochs = 300.0
    config.learning_rate = 5e-3
    config.weight_decay = 0.02
    config.target_threshold = 0.2
    config.model.stochastic_depth = 0.05
    config.data.repeats = 3
    config.augment.mixup_alpha = 0.1
    return config
