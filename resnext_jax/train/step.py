"""One training step as a pure function: (state, batch) -> (state, sums).

The loop runs it and the compile report lowers it.

A task gives the loss; this file does the rest: microbatches, devices, the update, and what can surround it.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from resnext_jax import metrics, sharding
from resnext_jax.ops.augment import image_keys
from resnext_jax.types import PyTree, TrainState

# (params, batch_stats, batch, keys) -> (mean loss, (updated batch_stats, sums))
LossFn = Callable[[PyTree, PyTree, PyTree, Array], tuple[Array, tuple[PyTree, PyTree]]]
Step = Callable[[TrainState, PyTree], tuple[TrainState, PyTree]]


@runtime_checkable  # so that tests can check annotations
class Trained(Protocol):
    """What the step knows of a network.

    Attributes:
      bn_group_images: images whose batch-norm statistics are taken together; 0 for the whole batch.
      dtype: dtype in which gradients of kernels are exchanged between devices.
      first_layer: module whose gradients show whether any number was not finite.
    """

    first_layer: ClassVar[str]

    @property
    def bn_group_images(self) -> int: ...

    @property
    def dtype(self) -> Any: ...


def train_step(
    state: TrainState,
    batch: PyTree,
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    model: Trained,
    seed: int,
    accumulation_steps: int = 1,
    mesh: Mesh | None = None,
    check_all: bool = False,
) -> tuple[TrainState, PyTree]:
    """Compute the gradient of the mean loss of a batch and update the state.

    Args:
      state: training state before the step. Donate it.
      batch: global batch; the first dimension of every array counts the images.
      loss_fn: (params, batch_stats, batch, keys) -> (mean loss, (batch_stats, sums)). Empty batch_stats leave those of
        the state as they are.
      optimizer: maps gradients and parameters to updates.
      model: network. Its `bn_group_images` must divide a microbatch (0 needs `accumulation_steps=1`).
      seed: seed of the run. With the step and the position in the batch it is the key of every random draw.
      accumulation_steps: number of microbatches, computed one after the other. They hold whole batch-norm groups, so
        the result is that of one pass: gradients and running statistics are averaged, and one update is made.
      mesh: devices that share the batch; None computes as on a single device.
      check_all: look for numbers that are not finite in all gradients, not only in those of the first layer.

    Returns:
      The state after the step, and the sums over the batch before the update. If the checked gradients are not finite,
      the loss is NaN.
    """
    # The scopes name these parts in profiles and in the compile report; modules name the rest.
    num_images = jax.tree.leaves(batch)[0].shape[0]
    with jax.named_scope("augment"):
        keys = image_keys(seed, state.step, num_images)

    # If every device holds whole batch-norm groups in every microbatch, each device computes by itself, and only
    # gradients, statistics and sums are added up. Otherwise the partitioner finds out what to exchange.
    num_devices = 1 if mesh is None else mesh.size
    images_per_unit = model.bn_group_images * accumulation_steps * num_devices
    local = mesh is not None and images_per_unit > 0 and num_images % images_per_unit == 0
    share = 1.0 / (accumulation_steps * (num_devices if local else 1))

    def scaled_loss(params: PyTree, *args: PyTree) -> tuple[Array, tuple]:
        loss, (batch_stats, sums) = loss_fn(params, *args)
        # Every result is a share of a sum, so the mean over microbatches and devices needs no pass of its own.
        return loss * share, (jax.tree.map(lambda stat: stat * share, batch_stats), sums)

    def gradients(variables: PyTree, rows: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        grads, (stats, sums) = jax.grad(scaled_loss, has_aux=True)(variables["params"], variables["batch_stats"], *rows)
        # Gradients of kernels were computed in the compute dtype, and are exchanged between devices in it.
        return jax.tree.map(lambda g: g.astype(model.dtype) if g.ndim == 4 else g, grads), stats, sums

    def accumulated(variables: PyTree, rows: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        micros = jax.tree.map(lambda x: split_rows(x, accumulation_steps, model.bn_group_images), rows)

        def one(micro: PyTree) -> tuple[PyTree, PyTree, PyTree]:
            return _float32(gradients(variables, micro))  # bfloat16 is too coarse for sums of microbatches

        first = jax.tree.map(lambda x: x[0], micros)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, first))
        total, _ = jax.lax.scan(lambda carry, micro: (metrics.add(carry, one(micro)), None), zeros, micros)
        return total

    compute = gradients if accumulation_steps == 1 else accumulated
    if local and mesh is not None:
        compute = sharding.sum_over_devices(compute, mesh)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    grads, batch_stats, sums = _float32(compute(variables, (batch, keys)))

    with jax.named_scope("update"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    new_state = TrainState(state.step + 1, params, batch_stats or state.batch_stats, opt_state, state.ema)
    # A ReLU may hide a NaN from the loss (on the CPU it does), but all gradients end in the first layer's. To check
    # only this layer costs one small kernel instead of a pass over all parameters.
    checked = grads if check_all else grads[model.first_layer]
    return new_state, sums.replace(loss=sums.loss + 0.0 * optax.tree.norm(checked))


def with_averages(step: Step, decay: float) -> Step:
    """Return a step that also updates the moving averages `state.ema`; see `average`."""

    def averaging(state: TrainState, batch: PyTree) -> tuple[TrainState, PyTree]:
        new, sums = step(state, batch)
        with jax.named_scope("update"):
            ema = average(state.ema, {"params": new.params, "batch_stats": new.batch_stats}, new.step, decay)
        return new.replace(ema=ema), sums

    return averaging


def skipping_nonfinite(step: Step) -> Step:
    """Return a step that changes only its counts if its loss or a running statistic is not finite.

    All sums of a skipped step are 0. The loss must say whether the gradients are finite (`check_all`).
    """

    def skipping(state: TrainState, batch: PyTree) -> tuple[TrainState, PyTree]:
        new, sums = step(state, batch)
        finite = jnp.isfinite(sums.loss + optax.tree.norm(new.batch_stats))
        return keep_if(finite, new, state), jax.tree.map(lambda x: jnp.where(finite, x, 0).astype(x.dtype), sums)

    return skipping


def average(ema: PyTree, now: PyTree, step: Array, decay: float) -> PyTree:
    """Return `decay * ema + (1 - decay) * now`, with a smaller decay at first because the first weights are untrained.

    The decay is min(decay, (1 + step) / (10 + step)), as in TensorFlow. Batch-norm statistics are averaged with the
    weights that they belong to, as in torchvision's recipes.

    Args:
      now: the same arrays after this step.
      step: number of updates, including this one.
      decay: in (0, 1).
    """
    made = step.astype(jnp.float32)
    share = 1.0 - jnp.minimum(jnp.float32(decay), (1.0 + made) / (10.0 + made))
    return jax.tree.map(lambda old, new: old + share * (new - old), ema, now)


def keep_if(finite: Bool[Array, ""], new: TrainState, old: TrainState) -> TrainState:
    """Return the new state if `finite`, otherwise the old one with the new counts (they set learning rate and keys)."""

    def one(new: Array, old: Array) -> Array:
        return new if jnp.issubdtype(new.dtype, jnp.integer) else jnp.where(finite, new, old)

    return jax.tree.map(one, new, old)


def all_finite(state: TrainState) -> Bool[Array, ""]:
    """Return whether parameters and running statistics are finite, so that the state is worth saving.

    An update may overflow although its loss and gradient were finite.
    """
    return jnp.isfinite(optax.tree.norm((state.params, state.batch_stats)))


def split_rows(rows: Array, parts: int, group_images: int) -> Array:
    """Reshape (batch, ...) to (parts, batch / parts, ...), in whole batch-norm groups.

    Part p takes the groups p, p + parts, p + 2 * parts, ... The batch is split over devices in consecutive rows, so
    every device already holds its share of each part.
    """
    groups = rows.reshape(-1, parts, group_images, *rows.shape[1:])
    return jnp.moveaxis(groups, 1, 0).reshape(parts, -1, *rows.shape[1:])


def _float32(tree: PyTree) -> PyTree:
    """Widen bfloat16 arrays to float32 and leave all others as they are."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree)
