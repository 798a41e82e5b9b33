"""Every check of a detection config; each problem is one sentence that says what to change."""

import math

from ml_collections import ConfigDict

from resnext_jax import sharding
from resnext_jax.config.checks import NONFINITE_POLICIES
from resnext_jax.detection import network
from resnext_jax.detection.recipe import STAGES
from resnext_jax.errors import unknown

AP_BY = ("own", "pycocotools")


def problems_of(config: ConfigDict, num_devices: int, num_processes: int = 1) -> list[str]:
    """Return what is wrong with a detection config on this many devices, one sentence each."""
    lines = [line for stage in STAGES for line in _stage_problems(config, stage, num_devices)]
    lines += evaluation_problems(config, num_devices)
    tables = {
        "on_nonfinite": (config.on_nonfinite, NONFINITE_POLICIES),
        "heads.pooling": (config.heads.pooling, network.POOLS),
        "data.name": (config.data.name, ("coco",)),
    }
    lines += [unknown(name, value, allowed) for name, (value, allowed) in tables.items() if value not in allowed]
    if config.debug_nans and num_processes > 1:
        lines.append(
            f"debug_nans=True looks at one process, and there are {num_processes}: start one alone, on a copy of the "
            "workdir."
        )
    anchors = config.anchors
    return lines + _wrong(
        {
            "seed": (config.seed, 0 <= config.seed < 2**32, "in [0, 2**32)"),
            "momentum": (config.momentum, 0 <= config.momentum < 1, "in [0, 1)"),
            "weight_decay": (config.weight_decay, 0 <= config.weight_decay < math.inf, "0 or more"),
            "warmup_steps": (config.warmup_steps, config.warmup_steps >= 0, "0 or more"),
            "frozen_stages": (config.frozen_stages, 0 <= config.frozen_stages <= 4, "in [0, 4]"),
            "max_skipped_in_a_row": (config.max_skipped_in_a_row, config.max_skipped_in_a_row > 0, "positive"),
            "watch.spike_nats": (config.watch.spike_nats, config.watch.spike_nats > 0, "positive"),
            "heads.rpn_features": (config.heads.rpn_features, config.heads.rpn_features > 0, "positive"),
            "heads.min_proposal_px": (config.heads.min_proposal_px, config.heads.min_proposal_px >= 0, "0 or more"),
            "rpn.sampled_anchors": (config.rpn.sampled_anchors, config.rpn.sampled_anchors > 1, "2 or more"),
            "fast_rcnn.sampled_regions": (
                config.fast_rcnn.sampled_regions,
                config.fast_rcnn.sampled_regions > 3,
                "4 or more",
            ),
            "fast_rcnn.train_proposals": (
                config.fast_rcnn.train_proposals,
                config.fast_rcnn.train_proposals > 0,
                "positive",
            ),
            "anchors.scales": (tuple(anchors.scales), _positive(anchors.scales), "one or more positive numbers"),
            "anchors.ratios": (tuple(anchors.ratios), _positive(anchors.ratios), "one or more positive numbers"),
            "log.every_steps": (config.log.every_steps, config.log.every_steps > 0, "positive"),
            "evaluate.every_steps": (config.evaluate.every_steps, config.evaluate.every_steps > 0, "positive"),
            "checkpoint.every_steps": (config.checkpoint.every_steps, config.checkpoint.every_steps > 0, "positive"),
            "checkpoint.keep_newest": (config.checkpoint.keep_newest, config.checkpoint.keep_newest > 0, "1 or more"),
        }
    )


def evaluation_problems(config: ConfigDict, num_devices: int) -> list[str]:
    """Return what is wrong with the fields that an evaluation reads, on this many devices, one sentence each."""
    data, evaluate = config.data, config.evaluate
    lines = sharding.check_batch_size("evaluate.batch_size", evaluate.batch_size, num_devices)
    if evaluate.coco not in AP_BY:
        lines.append(unknown("evaluate.coco", evaluate.coco, AP_BY))
    if data.dir is None:
        lines.append(
            "data.dir is not set: give the directory of COCO, or of a data set like it, --config.data.dir=DIR."
        )
    canvases = data.canvases_px
    if len(canvases) % 2 or not canvases or any(size != int(size) or size < 16 for size in canvases):
        lines.append(
            f"data.canvases_px={tuple(canvases)} must be pairs of height and width in whole pixels, 16 or more: "
            "608,816,816,608."
        )
    return lines + _wrong(
        {
            "data.max_boxes": (data.max_boxes, data.max_boxes > 0, "positive"),
            "data.short_side_px": (data.short_side_px, data.short_side_px > 0, "positive"),
            "data.long_side_px": (
                data.long_side_px,
                data.long_side_px >= data.short_side_px,
                "data.short_side_px or more",
            ),
            "data.num_threads": (data.num_threads, data.num_threads >= 0, "0 or more"),
            "evaluate.proposals": (evaluate.proposals, evaluate.proposals > 0, "positive"),
            "evaluate.max_detections": (evaluate.max_detections, evaluate.max_detections > 0, "positive"),
            "evaluate.nms_iou": (evaluate.nms_iou, 0 < evaluate.nms_iou <= 1, "in (0, 1]"),
            "evaluate.min_score": (evaluate.min_score, 0 <= evaluate.min_score < 1, "in [0, 1)"),
            "evaluate.pictures": (evaluate.pictures, evaluate.pictures >= 0, "0 or more"),
        }
    )


def _stage_problems(config: ConfigDict, stage: str, num_devices: int) -> list[str]:
    own = config[stage]
    boundaries = list(own.boundaries_steps)
    return sharding.check_batch_size(f"{stage}.batch_size", own.batch_size, num_devices) + _wrong(
        {
            f"{stage}.learning_rate": (own.learning_rate, 0 < own.learning_rate < math.inf, "positive"),
            f"{stage}.num_steps": (own.num_steps, own.num_steps > 0, "positive"),
            f"{stage}.boundaries_steps": (boundaries, boundaries == sorted(set(boundaries)), "increasing"),
        }
    )


def _positive(numbers: object) -> bool:
    values = list(numbers) if isinstance(numbers, tuple | list) else []
    return bool(values) and all(0 < value < math.inf for value in values)


def _wrong(ranges: dict[str, tuple[object, bool, str]]) -> list[str]:
    return [f"{name}={value!r} must be {allowed}." for name, (value, fine, allowed) in ranges.items() if not fine]
