"""ResNeXt-101 (64x4d) on ImageNet-1K: Tables 4 and 5, top-1 / top-5 error 20.4 / 5.3 %, the paper's best network.

    python main.py --config=configs/resnext101_64x4d.py --config.data.dir=DIR

On eight devices a batch of 256 is the paper's 8 GPUs x 32; on fewer or smaller ones, --config.accumulation_steps=8
makes the same update from eight microbatches.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnext101_64x4d"
    return config
