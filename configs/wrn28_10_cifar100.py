"""Wide ResNet (WRN-28-10) on CIFAR-100: Table 7, test error 20.50 %.

Trained as its authors did (Zagoruyko & Komodakis 2016), whose number it is. They later published 18.85 % with dropout:
--config.model.dropout=0.3.

    python main.py --config=configs/wrn28_10_cifar100.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.wide_resnet(num_classes=100)
    config.model.name = "wrn28_10"
    return config
