"""A network written to a file of `jax.export`, which serves without this package."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax import export

from resnext_jax.errors import UserError, raise_all, unknown
from resnext_jax.evaluate.classify import predict_step
from resnext_jax.models import zoo
from resnext_jax.ops.conv_choice import resolver
from resnext_jax.types import PyTree

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # what jax.export calls them


def write_exported(
    path: str,
    model: zoo.Network,
    variables: PyTree,
    data: Mapping[str, Any],
    *,
    platforms: Sequence[str],
    batch_size: int | None,
    image_size_px: int | None,
) -> None:
    """Write the function from images to logits; see `api.Net.export`.

    Args:
      variables: `params` and `batch_stats`.
      data: preprocessing of the weights: `mean`, `std` and `image_size_px`.

    Raises:
      UserError: an unknown platform, a size that is not positive, or the file cannot be written.
    """
    here = export.default_export_platform()
    platforms = (platforms,) if isinstance(platforms, str) else tuple(platforms) or (here,)
    problems = [unknown("platform", name, PLATFORMS) for name in platforms if name not in PLATFORMS]
    sizes = {"batch_size": batch_size, "image_size_px": image_size_px}
    problems += [f"{name}={size} must be 1 or more." for name, size in sizes.items() if size is not None and size < 1]
    raise_all(problems)
    if platforms[0] != here:
        first = "gpu" if platforms[0] in ("cuda", "rocm") else platforms[0]
        model = model.clone(choose_conv=resolver("auto", first))
    size_px = image_size_px or data["image_size_px"]
    batch = batch_size or export.symbolic_shape("batch")[0]
    step = partial(predict_step, variables, model=model, mean=data["mean"], std=data["std"])
    images = jax.ShapeDtypeStruct((batch, size_px, size_px, len(data["mean"])), "uint8")
    exported = export.export(jax.jit(step), platforms=platforms)(images)
    try:
        pathlib.Path(os.path.expanduser(path)).write_bytes(exported.serialize())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Give the path of a new file.") from None
