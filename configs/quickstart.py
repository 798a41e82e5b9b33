"""The quickstart: a small ResNeXt (20 layers, 8x4d) on the built-in Fashion-MNIST images, in minutes on two cores.

python main.py --config=configs/quickstart.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.fashion_mnist()
    config.num_epochs = 10.0
    config.data.name = "builtin"
    return config
