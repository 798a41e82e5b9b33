"""Faster R-CNN with ResNeXt-101 (32x4d) on COCO: Table 8, AP@0.5 51.9, AP 30.0.

python main.py --config=configs/detection_resnext101_32x4d.py --config.init_from=CHECKPOINT --config.data.dir=COCO

CHECKPOINT is the workdir of a classifier that was trained on ImageNet-1K, or what resnext_jax.convert wrote.
"""

from ml_collections import ConfigDict

from configs import detection_common


def get_config() -> ConfigDict:
    return detection_common.table8("resnext101_32x4d")
