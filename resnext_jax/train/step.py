"""One training step, pure: (state, batch) -> (state, metrics). The loop jits it, the compile report lowers it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from resnext_jax import metrics, sharding
from resnext_jax.models.zoo import Network
from resnext_jax.ops.augment import image_keys
from resnext_jax.ops.mix import Labels
from resnext_jax.types import Batch, PyTree, TrainState


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Network,
    optimizer: optax.GradientTransformation,
    augment: Callable[[Array, Array], Array],
    seed: int,
    loss: Callable[[Array, Labels], Array],
    accumulation_steps: int,
    mesh: Mesh | None,
    trains_only: str | None = None,
    skip_nonfinite: bool = False,
    ema_decay: float = 0.0,
    mix: Callable[[Array, Array, Array], tuple[Array, Labels]] | None = None,
) -> tuple[TrainState, metrics.Sums]:
    """Augments, runs forward and backward, and updates; the gradient is of the mean loss of the batch.

    Args:
      state: before the step; donate it.
      batch: the global batch.
      model: its `bn_group_images` must divide a microbatch (0 needs `accumulation_steps` of 1).
      optimizer: gradients and parameters -> updates.
      augment: (uint8 images, keys) -> normalised float32 images; `ops.augment.make_augment`.
      seed: of the run; with the step and the position in the batch it keys every draw, of augmentation and dropout.
      loss: (logits, labels) -> of each image; a row of `ops.loss.LOSSES`.
      accumulation_steps: microbatches, one after the other. Whole batch-norm groups, so the mathematics is that of
        one pass: gradients and running statistics are averaged, one update is made.
      mesh: that the batch is split over; None computes as on a single device.
      trains_only: the one module whose parameters have a gradient; the network is then in inference mode, and its
        running statistics stay. The optimizer must leave the others alone (`optim.only`).
      ema_decay: of the averages, where the state has any; see `average`.
      mix: (images, labels, keys) -> mixed images and labels, after the augmentation; `ops.mix.mix`.
      skip_nonfinite: a step whose loss or gradient is not finite changes nothing but the counts of steps.

    Returns:
      The state after the step, and the sums over the training images, augmented and before the update; of mixed ones
      the label with the larger weight counts, and the loss is always the cross-entropy. Where the
      gradient is not finite the loss is NaN; with `skip_nonfinite` all sums are 0.
    """
    # The scopes name these parts in profiles and in the compile report; modules name the rest.
    with jax.named_scope("augment"):
        keys = image_keys(seed, state.step, batch.label.shape[0])

    # Where every device holds whole batch-norm groups in every microbatch, each computes by itself and only gradients,
    # statistics and sums are added up. Else the partitioner finds out what to exchange.
    num_devices = 1 if mesh is None else mesh.size
    images_per_unit = model.bn_group_images * accumulation_steps * num_devices
    apart = mesh is not None and images_per_unit > 0 and batch.label.shape[0] % images_per_unit == 0
    share = 1.0 / (accumulation_steps * (num_devices if apart else 1))

    def loss_fn(params: PyTree, batch_stats: PyTree, micro: Batch, micro_keys: Array) -> tuple[Array, tuple]:
        with jax.named_scope("augment"):
            images, labels = augment(micro.image, micro_keys), Labels(micro.label)
            if mix is not None:
                images, labels = mix(images, micro.label, micro_keys)
        if trains_only:
            params = {name: _constant(value) if name != trains_only else value for name, value in params.items()}
        logits, updated = model.apply(
            *({"params": params, "batch_stats": batch_stats}, images),
            train=not trains_only,
            keys=micro_keys,
            mutable=["batch_stats"],
        )
        with jax.named_scope("loss"):
            minimized = loss(logits, labels).mean()
            sums = metrics.count(logits, labels.largest(), micro.mask)
        # Everything comes out as the share of a sum: a mean over microbatches and devices needs no pass of its own.
        return minimized * share, (jax.tree.map(lambda stat: stat * share, updated.get("batch_stats", {})), sums)

    def gradients(variables: PyTree, micro: tuple[Batch, Array]) -> tuple[PyTree, PyTree, metrics.Sums]:
        grads, (stats, sums) = jax.grad(loss_fn, has_aux=True)(variables["params"], variables["batch_stats"], *micro)
        # Gradients of kernels came through the compute dtype, and cross the network so.
        return jax.tree.map(lambda g: g.astype(model.dtype) if g.ndim == 4 else g, grads), stats, sums

    def accumulated(variables: PyTree, rows: tuple[Batch, Array]) -> tuple[PyTree, PyTree, metrics.Sums]:
        micros = jax.tree.map(lambda x: split_rows(x, accumulation_steps, model.bn_group_images), rows)

        def one(micro: tuple[Batch, Array]) -> tuple[PyTree, PyTree, metrics.Sums]:
            return _float32(gradients(variables, micro))  # sums of many are no business of bfloat16

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, _first(micros)))
        total, _ = jax.lax.scan(lambda carry, micro: (metrics.add(carry, one(micro)), None), zeros, micros)
        return total

    compute = gradients if accumulation_steps == 1 else accumulated
    if apart and mesh is not None:
        compute = sharding.sum_over_devices(compute, mesh)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    grads, batch_stats, sums = _float32(compute(variables, (batch, keys)))

    with jax.named_scope("update"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        step, params = state.step + 1, optax.apply_updates(state.params, updates)
        batch_stats = state.batch_stats if trains_only else batch_stats
        ema = state.ema
        if ema is not None:
            ema = average(ema, {"params": params, "batch_stats": batch_stats}, step, ema_decay)
        new_state = TrainState(step, params, batch_stats, opt_state, ema)
    if skip_nonfinite:
        finite = jnp.isfinite(sums.loss + optax.tree.norm((grads, batch_stats)))
        return keep_if(finite, new_state, state), jax.tree.map(lambda x: jnp.where(finite, x, 0).astype(x.dtype), sums)
    # A ReLU may hide a NaN from the loss (on the CPU it does), but all gradients end in the first layer's: one that is
    # not finite makes the loss NaN, at the price of one small kernel instead of a pass over all parameters.
    return new_state, sums.replace(loss=sums.loss + 0.0 * optax.tree.norm(grads[model.first_layer]))


def average(ema: PyTree, now: PyTree, step: Array, decay: float) -> PyTree:
    """`decay * ema + (1 - decay) * now`, with a smaller decay at first: the averages begin with untrained weights.

    The decay is min(decay, (1 + step) / (10 + step)), TensorFlow's; batch-norm statistics are averaged with the
    weights that they belong to, as in torchvision's recipes.

    Args:
      ema: the averages so far.
      now: the same arrays after this step.
      step: updates made, this one included.
      decay: in (0, 1).
    """
    made = step.astype(jnp.float32)
    share = 1.0 - jnp.minimum(jnp.float32(decay), (1.0 + made) / (10.0 + made))
    return jax.tree.map(lambda old, new: old + share * (new - old), ema, now)


def keep_if(finite: Bool[Array, ""], new: TrainState, old: TrainState) -> TrainState:
    """The new state where `finite`; else the old one, whose counts go on: they make the learning rate and the draws."""

    def one(new: Array, old: Array) -> Array:
        return new if jnp.issubdtype(new.dtype, jnp.integer) else jnp.where(finite, new, old)

    return jax.tree.map(one, new, old)


def all_finite(state: TrainState) -> Bool[Array, ""]:
    """Whether a checkpoint of this state would be a good one: its parameters and running statistics are finite.

    Asked before a save: an update may overflow that came from a finite loss and gradient.
    """
    return jnp.isfinite(optax.tree.norm((state.params, state.batch_stats)))


def split_rows(rows: Array, parts: int, group_images: int) -> Array:
    """(batch, ...) -> (parts, batch / parts, ...), in whole batch-norm groups.

    Part p takes the groups p, p + parts, p + 2 * parts, ...: with the batch split over devices in consecutive rows,
    every device finds its share of each part at home.
    """
    groups = rows.reshape(-1, parts, group_images, *rows.shape[1:])
    return jnp.moveaxis(groups, 1, 0).reshape(parts, -1, *rows.shape[1:])


def _constant(tree: PyTree) -> PyTree:
    return jax.tree.map(jax.lax.stop_gradient, tree)


def _float32(tree: PyTree) -> PyTree:
    """Low-precision floats widened, everything else as it is."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree)


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], tree)
