"""One training step, pure: (state, batch) -> (state, metrics). The loop jits it, the compile report lowers it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float

from resnext_jax import metrics
from resnext_jax.models.template import ResNeXt
from resnext_jax.ops.augment import image_keys
from resnext_jax.types import Batch, PyTree, TrainState


class StepMetrics(struct.PyTreeNode):
    """What a step tells about itself.

    Attributes:
      sums: loss and accuracies over the training images of the step, augmented, before the update.
      finite: whether the loss and all parameters after the update are finite; a gradient that is not shows in them.
    """

    sums: metrics.Sums
    finite: Bool[Array, ""]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: ResNeXt,
    optimizer: optax.GradientTransformation,
    augment: Callable[[Array, Array], Array],
    seed: int,
    label_smoothing: float,
    accumulation_steps: int,
) -> tuple[TrainState, StepMetrics]:
    """Augments, runs forward and backward, and updates; the gradient is of the mean cross-entropy of the batch.

    Args:
      state: before the step; donate it.
      batch: the global batch.
      model: its `bn_group_images` must divide a microbatch (0 needs `accumulation_steps` of 1).
      optimizer: gradients and parameters -> updates.
      augment: (uint8 images, keys) -> normalised float32 images; `ops.augment.make_augment`.
      seed: of the run; with the step and the position in the batch it keys every draw.
      label_smoothing: in [0, 1).
      accumulation_steps: microbatches, one after the other. Whole batch-norm groups, so the mathematics is that of
        one pass: gradients and running statistics are averaged, one update is made.
    """
    # The scopes name these parts in profiles and in the compile report; modules name the rest.
    with jax.named_scope("augment"):
        keys = image_keys(seed, state.step, batch.label.shape[0])

    def loss_fn(params: PyTree, micro: Batch, micro_keys: Array) -> tuple[Float[Array, ""], tuple]:
        with jax.named_scope("augment"):
            images = augment(micro.image, micro_keys)
        logits, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats}, images, train=True, mutable=["batch_stats"]
        )
        with jax.named_scope("loss"):
            loss = metrics.cross_entropy(logits, micro.label, label_smoothing).mean()
            sums = metrics.count(logits, micro.label, micro.mask)
        return loss, (updated["batch_stats"], sums)

    def one(micro: Batch, micro_keys: Array) -> tuple[PyTree, PyTree, Array, metrics.Sums]:
        (loss, (stats, sums)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, micro, micro_keys)
        return grads, stats, loss, sums

    if accumulation_steps == 1:
        grads, batch_stats, loss, sums = one(batch, keys)
    else:
        micros = jax.tree.map(lambda rows: split_rows(rows, accumulation_steps, model.bn_group_images), (batch, keys))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, *_first(micros)))
        total, _ = jax.lax.scan(lambda carry, micro: (metrics.add(carry, one(*micro)), None), zeros, micros)
        *averaged, sums = total
        grads, batch_stats, loss = jax.tree.map(lambda x: x / accumulation_steps, averaged)

    with jax.named_scope("update"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        # A gradient that is not finite shows in the parameters, and an update that overflows only there.
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(new_state.params))
    return new_state, StepMetrics(sums=sums, finite=finite)


def split_rows(rows: Array, parts: int, group_images: int) -> Array:
    """(batch, ...) -> (parts, batch / parts, ...), in whole batch-norm groups.

    Part p takes the groups p, p + parts, p + 2 * parts, ...: with the batch split over devices in consecutive rows,
    every device finds its share of each part at home.
    """
    groups = rows.reshape(-1, parts, group_images, *rows.shape[1:])
    return jnp.moveaxis(groups, 1, 0).reshape(parts, -1, *rows.shape[1:])


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], tree)
