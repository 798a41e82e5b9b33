"""Object detection (section 5.4, appendix B, Table 8): every field that a run of it reads, with the paper's values."""

from ml_collections import ConfigDict, config_dict

from configs import common

# Fields that mean the same in every task.
SHARED = (
    *("seed", "momentum", "conv_impl", "compute_dtype"),
    *("on_nonfinite", "max_skipped_in_a_row", "debug_nans", "resume_changed"),
    *("log", "watch", "checkpoint"),
)


def base() -> ConfigDict:
    """Faster R-CNN on COCO: an RPN and a Fast R-CNN that share nothing, trained one after the other."""
    shared = common.base()
    config = ConfigDict({name: shared[name] for name in SHARED})
    config.task = "detection"
    config.init_from = config_dict.placeholder(str)  # checkpoint of an ImageNet classifier, the start of both networks
    config.model = ConfigDict({"name": ""})  # a ResNet or ResNeXt of models.zoo.ARCHS
    config.frozen_stages = 2  # conv1 and conv2; batch norm is always frozen
    config.weight_decay = 1e-4  # on kernels; biases do not decay, and learn at twice the rate

    config.rpn = ConfigDict()  # first stage: the region proposal network
    config.rpn.batch_size = 16  # global; the paper's 8 GPUs x 2
    config.rpn.learning_rate = 0.02
    config.rpn.num_steps = 180_000
    config.rpn.boundaries_steps = (120_000,)  # the rate drops to a tenth here
    config.rpn.sampled_anchors = 256  # per image, at most half of them positive
    config.rpn.border_px = 0.0  # anchors that cross the border by more are not trained; negative for no limit

    config.fast_rcnn = ConfigDict()  # second stage: Fast R-CNN on the proposals of the first
    config.fast_rcnn.batch_size = 8  # global; the paper's 8 GPUs x 1
    config.fast_rcnn.learning_rate = 0.005
    config.fast_rcnn.num_steps = 180_000
    config.fast_rcnn.boundaries_steps = (120_000,)
    config.fast_rcnn.sampled_regions = 64  # per image, at most a quarter of them objects
    config.fast_rcnn.train_proposals = 2000  # per image, after NMS
    config.warmup_steps = 0  # linear from 0, in both stages

    config.heads = ConfigDict()
    config.heads.rpn_features = 1024  # channels of the RPN's 3x3 convolution
    config.heads.min_proposal_px = 16.0  # shortest side of a proposal, in pixels of the original image
    config.heads.pooling = "max"  # max | align: RoI max pooling, or RoIAlign
    config.anchors = ConfigDict()
    config.anchors.scales = (4.0, 8.0, 16.0, 32.0)  # times 16 px: 64 to 512 px
    config.anchors.ratios = (0.5, 1.0, 2.0)  # height / width

    config.data = ConfigDict()
    config.data.name = "coco"
    config.data.dir = config_dict.placeholder(str)  # COCO 2014 or 2017, a data set in its format, or prepared records
    config.data.short_side_px = 600
    config.data.long_side_px = 1000  # at most
    config.data.canvases_px = (608, 816, 608, 1008, 816, 608, 1008, 608)  # height, width of each static size of batches
    config.data.max_boxes = 100  # most boxes of an image; COCO's have up to 93
    config.data.mean = config_dict.placeholder(tuple)  # this and std: by default those of init_from
    config.data.std = config_dict.placeholder(tuple)
    config.data.num_threads = 16

    config.evaluate = ConfigDict()
    config.evaluate.every_steps = 20_000
    config.evaluate.batch_size = 8
    config.evaluate.proposals = 300  # per image
    config.evaluate.nms_iou = 0.3  # of boxes of one class
    config.evaluate.min_score = 0.05
    config.evaluate.max_detections = 100  # per image
    config.evaluate.coco = "own"  # own | pycocotools: what computes AP
    config.evaluate.pictures = 4  # validation images with boxes after every evaluation
    config.checkpoint.every_steps = 2000
    return config


def table8(network: str) -> ConfigDict:
    """Return the config of a row of Table 8."""
    config = base()
    config.model.name = network
    return config
