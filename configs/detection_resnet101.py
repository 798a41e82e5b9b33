"""Faster R-CNN with ResNet-101 on COCO: Table 8, AP@0.5 51.1, AP 29.8.

python main.py --config=configs/detection_resnet101.py --config.init_from=CHECKPOINT --config.data.dir=COCO

CHECKPOINT is the workdir of a classifier that was trained on ImageNet-1K, or what resnext_jax.convert wrote.
"""

from ml_collections import ConfigDict

from configs import detection_common


def get_config() -> ConfigDict:
    return detection_common.table8("resnet101")
