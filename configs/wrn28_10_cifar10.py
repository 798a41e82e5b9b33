"""Wide ResNet (WRN-28-10) on CIFAR-10: Table 7, test error 4.17 %.

Trained as its authors did (Zagoruyko & Komodakis 2016), whose number it is. They later published 3.89 % with dropout:
--config.model.dropout=0.3.

    python main.py --config=configs/wrn28_10_cifar10.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.wide_resnet(num_classes=10)
    config.model.name = "wrn28_10"
    return config
