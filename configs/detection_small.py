"""A small Faster R-CNN for pictures of 128 px, as experiments/table8_detection makes them, on a CPU.

python main.py --config=configs/detection_small.py --config.init_from=CHECKPOINT --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from configs import detection_common


def get_config() -> ConfigDict:
    config = detection_common.base()
    config.compute_dtype = "float32"
    config.frozen_stages = 0
    config.rpn.batch_size = config.fast_rcnn.batch_size = 8
    config.rpn.learning_rate = config.fast_rcnn.learning_rate = 0.01
    config.rpn.num_steps, config.rpn.boundaries_steps = 600, (450,)
    config.fast_rcnn.num_steps, config.fast_rcnn.boundaries_steps = 600, (450,)
    config.rpn.sampled_anchors = 64
    config.fast_rcnn.sampled_regions = 16
    config.fast_rcnn.train_proposals = 100
    config.warmup_steps = 50
    config.heads.rpn_features = 64
    config.heads.min_proposal_px = 4.0
    config.anchors.scales = (1.25, 2.0, 3.0)  # 20, 32 and 48 px
    config.data.short_side_px = config.data.long_side_px = 128
    config.data.canvases_px = (128, 128)
    config.data.num_threads = 1
    config.evaluate.every_steps = 300
    config.evaluate.proposals = 100
    config.checkpoint.every_steps = 100
    config.log.every_steps = 20
    return config
