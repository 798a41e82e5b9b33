"""The detector of a config as pure functions: the losses of both stages, proposals and detections.

Sources: appendix B of the paper; py-faster-rcnn's `config.py` for the numbers of proposals.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from resnext_jax.detection import anchors, losses, sampling
from resnext_jax.detection.detections import Detections, find_objects
from resnext_jax.detection.network import FastNetwork, RpnNetwork, freeze, require_trunk, stride_px
from resnext_jax.detection.proposals import Proposals, propose
from resnext_jax.detection.types import DetectionBatch
from resnext_jax.errors import UserError, unknown
from resnext_jax.models import zoo
from resnext_jax.ops.conv_choice import resolver
from resnext_jax.sharding import Place
from resnext_jax.types import Leaf, PyTree

TRAIN_CANDIDATES, TEST_CANDIDATES = 12_000, 6_000  # boxes before NMS (RPN_PRE_NMS_TOP_N)


class DetectionSums(struct.PyTreeNode):
    """Sums over the images of a step."""

    loss: Leaf  # of classes and boxes
    class_loss: Leaf
    box_loss: Leaf
    images: Leaf  # number of images


@dataclasses.dataclass(frozen=True)
class Detector:
    """Both networks, and what is computed with them.

    Variables of the first stage are `params` and `batch_stats` of the RPN. Those of the second stage are `params` of
    Fast R-CNN; its `batch_stats` hold all that is not trained: the statistics under `fast_rcnn`, and the variables of
    the RPN under `rpn`. So one checkpoint detects.

    Attributes:
      rpn, fast_rcnn: the networks.
      config: config of a stage (`recipe.stage_config`).
    """

    rpn: RpnNetwork
    fast_rcnn: FastNetwork
    config: ConfigDict

    # What `train.step` asks of a network. With frozen batch norm every image is computed by itself.
    first_layer: ClassVar[str] = "stem_conv"

    @property
    def bn_group_images(self) -> int:
        return 1

    @property
    def dtype(self) -> Any:
        return self.fast_rcnn.dtype

    def normalize(self, batch: DetectionBatch) -> Float[Array, "batch height width 3"]:
        """Return the images as float32, normalized."""
        mean, std = (jnp.asarray(self.config.data[name], jnp.float32) for name in ("mean", "std"))
        return (batch.image.astype(jnp.float32) - mean[None, None, None]) / std[None, None, None]

    def grid(self, batch: DetectionBatch) -> anchors.Grid:
        """Return the anchors of images of this size."""
        stride = stride_px(self.rpn.arch)
        height, width = (-(-side // stride) for side in batch.image.shape[1:3])
        own = self.config.anchors
        return anchors.grid(height, width, stride, anchors.cell_anchors(anchors.BASE_PX, own.scales, own.ratios))

    def propose(self, variables: PyTree, batch: DetectionBatch, num_candidates: int, num_proposals: int) -> Proposals:
        """Return the proposals of every image, in pixels of the resized images.

        Args:
          variables: `params` and `batch_stats` of the RPN.
          num_candidates, num_proposals: boxes before and after NMS.
        """
        logits, deltas = self.rpn.apply(variables, self.normalize(batch), batch.size_px)
        one = partial(
            propose,
            grid=self.grid(batch),
            num_candidates=num_candidates,
            num_proposals=num_proposals,
            smallest_px=self.config.heads.min_proposal_px,
        )
        return jax.vmap(lambda *rows: one(rows[0], rows[1], size_px=rows[2], scale=rows[3]))(
            logits, deltas, batch.size_px, batch.scale
        )

    def rpn_loss(
        self, params: PyTree, batch_stats: PyTree, batch: DetectionBatch, keys: Array
    ) -> tuple[Array, tuple[PyTree, DetectionSums]]:
        """Return the mean loss of the RPN over the images, and its sums; a `train.step.LossFn`."""
        config, grid = self.config, self.grid(batch)
        variables = {"params": freeze(params, config.frozen_stages), "batch_stats": batch_stats}
        logits, deltas = self.rpn.apply(variables, self.normalize(batch), batch.size_px)
        border_px = config.border_px if config.border_px >= 0 else np.inf

        def of_image(key, logits, deltas, size_px, boxes, label, crowd):
            candidate = anchors.present(grid, size_px) & anchors.inside(grid, size_px, border_px)
            is_object = (label > 0) & ~crowd
            args = (key, jnp.asarray(grid.anchors), candidate, boxes, is_object, config.sampled_anchors)
            return losses.rpn_losses(logits, deltas, sampling.sample_anchors(*args))

        rows = (keys, logits, deltas, batch.size_px, batch.boxes, batch.label, batch.crowd)
        return _mean(jax.vmap(of_image)(*rows))

    def fast_rcnn_loss(
        self, params: PyTree, batch_stats: PyTree, batch: DetectionBatch, keys: Array
    ) -> tuple[Array, tuple[PyTree, DetectionSums]]:
        """Return the mean loss of Fast R-CNN over the images, on proposals of the RPN; a `train.step.LossFn`."""
        config = self.config
        with jax.named_scope("rpn"):
            found = self.propose(batch_stats["rpn"], batch, TRAIN_CANDIDATES, config.train_proposals)
        sample = jax.vmap(partial(sampling.sample_regions, num_samples=config.sampled_regions))(
            keys, found.boxes, found.present, batch.boxes, batch.label, batch.crowd
        )
        variables = {"params": freeze(params, config.frozen_stages), "batch_stats": batch_stats["fast_rcnn"]}
        outputs: Any = self.fast_rcnn.apply(variables, self.normalize(batch), batch.size_px, sample.boxes)
        logits, deltas = outputs
        return _mean(jax.vmap(losses.region_losses)(logits, deltas, sample))

    def proposals(self, variables: PyTree, batch: DetectionBatch, num_proposals: int) -> Detections:
        """Return proposals as detections without a class, in pixels of the original images."""
        found = self.propose(variables, batch, TEST_CANDIDATES, num_proposals)
        label = found.present.astype(jnp.int32)
        return Detections(found.boxes / batch.scale[:, None, None], label, found.score, found.present)

    def detect(self, variables: PyTree, batch: DetectionBatch) -> Detections:
        """Return the objects of every image, in pixels of the original images.

        Args:
          variables: `params` and `batch_stats` of the second stage.
        """
        limits, scale = self.config.evaluate, batch.scale[:, None, None]
        with jax.named_scope("rpn"):
            found = self.propose(variables["batch_stats"]["rpn"], batch, TEST_CANDIDATES, limits.proposals)
        own = {"params": variables["params"], "batch_stats": variables["batch_stats"]["fast_rcnn"]}
        logits, deltas = self.fast_rcnn.apply(own, self.normalize(batch), batch.size_px, found.boxes)
        one = partial(
            find_objects,
            smallest_score=limits.min_score,
            iou_threshold=limits.nms_iou,
            num_detections=limits.max_detections,
        )
        # The size of the resized image was rounded: half a pixel more includes every pixel of the original.
        size_px = (batch.size_px + 0.5) / batch.scale[:, None]
        return jax.vmap(lambda *rows: one(*rows))(logits, deltas, found.boxes / scale, found.present, size_px)


def build_detector(config: ConfigDict, num_classes: int, place: Place) -> Detector:
    """Return the detector of a stage's config.

    Raises:
      UserError: no such network, or one that has no trunk and head; or an unknown dtype or algorithm.
    """
    arch = require_trunk(config.model.name, zoo.select(**config.model))
    choose_conv = resolver(config.conv_impl, place.platform, place.chip, arch.cardinality)
    if config.compute_dtype not in zoo.DTYPES:
        raise UserError(unknown("compute_dtype", config.compute_dtype, zoo.DTYPES))
    dtype = zoo.DTYPES[config.compute_dtype]
    num_anchors = len(config.anchors.scales) * len(config.anchors.ratios)
    rpn = RpnNetwork(arch, choose_conv, num_anchors, config.heads.rpn_features, dtype)
    return Detector(rpn, FastNetwork(arch, num_classes, choose_conv, config.heads.pooling, dtype), config)


def _mean(
    values: tuple[Float[Array, " images"], Float[Array, " images"]],
) -> tuple[Array, tuple[PyTree, DetectionSums]]:
    class_loss, box_loss = values
    loss = class_loss + box_loss
    images = jnp.asarray(len(loss), jnp.int32)
    return loss.mean(), ({}, DetectionSums(loss.sum(), class_loss.sum(), box_loss.sum(), images))
