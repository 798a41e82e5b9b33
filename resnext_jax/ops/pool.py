"""The stem's max-pool, 3x3 of stride 2, with a gradient that is fast on every platform; averages of last stages."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int8

Images = Float[Array, "batch height width channel"]
Pooled = Float[Array, "batch out_height out_width channel"]
TAPS = tuple(itertools.product(range(3), repeat=2))


def max_pool(x: Images) -> Pooled:
    """Return the largest of each 3x3 window, stride 2, padding 1; the gradient goes to the first of equals.

    XLA's own gradient (select-and-scatter) is slow on the CPU, a tenth of a ResNeXt-50 step.
    """
    # Decided by the platform that the program is compiled for, which may not be this machine's.
    return lax.platform_dependent(x, cpu=_by_taps, default=_by_windows)


def _by_windows(x: Images) -> Pooled:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


@jax.custom_vjp
def _by_taps(x: Images) -> Pooled:
    return _by_windows(x)


def _forward(x: Images) -> tuple[Pooled, tuple[Int8[Array, "batch out_height out_width channel"], tuple[int, ...]]]:
    height, width = (-(-size // 2) for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    rows, columns = 2 * height - 1, 2 * width - 1
    taps = [padded[:, row : row + rows : 2, column : column + columns : 2] for row, column in TAPS]
    best, winner = taps[0], jnp.zeros(taps[0].shape, jnp.int8)
    for index, values in enumerate(taps[1:], start=1):
        winner = jnp.where(values > best, jnp.int8(index), winner)
        best = jnp.maximum(best, values)
    return best, (winner, x.shape)


def _backward(saved: tuple, grad_out: Pooled) -> tuple[Images]:
    """Return the gradient. Row 2i is only in window i (its middle), row 2i + 1 in i (its end) and i + 1 (its start)."""
    winner, (batch, height, width, channel) = saved
    out_height, out_width = winner.shape[1:3]
    ahead = ((0, 0), (0, 1), (0, 1), (0, 0))
    winner, grad_out = jnp.pad(winner, ahead, constant_values=-1), jnp.pad(grad_out, ahead)

    def reaching(row: int, column: int) -> Array:
        """Return the gradient of the inputs at (2i + row, 2j + column)."""
        total = jnp.zeros((), grad_out.dtype)
        for down, row_tap in ((0, 1),) if row == 0 else ((0, 2), (1, 0)):
            for right, column_tap in ((0, 1),) if column == 0 else ((0, 2), (1, 0)):
                window = (slice(None), slice(down, down + out_height), slice(right, right + out_width))
                won = winner[window] == TAPS.index((row_tap, column_tap))
                total = total + jnp.where(won, grad_out[window], jnp.zeros((), grad_out.dtype))
        return total

    rows = [jnp.stack([reaching(row, 0), reaching(row, 1)], axis=3) for row in range(2)]
    grad_x = jnp.stack(rows, axis=2).reshape(batch, 2 * out_height, 2 * out_width, channel)
    return (grad_x[:, :height, :width],)


_by_taps.defvjp(_forward, _backward)


def global_average(x: Images) -> Float[Array, "batch channel"]:
    """Return the mean over all positions, in float32."""
    return x.astype(jnp.float32).mean(axis=(1, 2))


def dense_average(x: Images, window_px: int) -> Float[Array, "batch channel"]:
    """Return the mean of the averages of all windows, as if a classifier were applied at every position and averaged.

    Positions near the border are in fewer windows and count less.

    Args:
      window_px: size of the last activations in training: 7 for 224 px images at stride 32. A shorter side is one
        window.
    """
    weights = []
    for size in x.shape[1:3]:
        window = min(window_px, size)
        windows = np.convolve(np.ones(size - window + 1), np.ones(window))
        weights.append(jnp.asarray(windows / windows.sum(), jnp.float32))
    return jnp.einsum("bhwc,h,w->bc", x.astype(jnp.float32), *weights, precision="highest")
