"""Faster R-CNN with ResNet-50 on COCO: Table 8, AP@0.5 47.6, AP 26.5.

python main.py --config=configs/detection_resnet50.py --config.init_from=CHECKPOINT --config.data.dir=COCO

CHECKPOINT is the workdir of a classifier that was trained on ImageNet-1K, or what resnext_jax.convert wrote.
"""

from ml_collections import ConfigDict

from configs import detection_common


def get_config() -> ConfigDict:
    return detection_common.table8("resnet50")
