"""Faster R-CNN with ResNeXt-50 (32x4d) on COCO: Table 8, AP@0.5 49.7, AP 27.5.

python main.py --config=configs/detection_resnext50_32x4d.py --config.init_from=CHECKPOINT --config.data.dir=COCO

CHECKPOINT is the workdir of a classifier that was trained on ImageNet-1K, or what resnext_jax.convert wrote.
"""

from ml_collections import ConfigDict

from configs import detection_common


def get_config() -> ConfigDict:
    return detection_common.table8("resnext50_32x4d")
