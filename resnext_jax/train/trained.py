"""A checkpoint opened to be evaluated, with the data and the network of its config."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from resnext_jax import sharding
from resnext_jax.checkpoint import locate, read_description, read_variables, require_same_arrays
from resnext_jax.data.sources import Source
from resnext_jax.errors import raise_all
from resnext_jax.models.zoo import Network
from resnext_jax.train.assemble import jit_evaluation, model_of
from resnext_jax.train.dataset import facts, open_data, same_classes
from resnext_jax.train.problems import evaluation_problems
from resnext_jax.train.validation import evaluate_all
from resnext_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Trained:
    """Attributes: the checkpoint and its JSON item; where it runs; the validation images; what is to be evaluated."""

    checkpoint: epath.Path
    description: dict[str, Any]
    config: ConfigDict
    place: sharding.Place
    source: Source
    model: Network
    variables: PyTree

    def evaluate(self, variables: PyTree) -> dict[str, float]:
        """Loss, top-1, top-5 and the number of images."""
        step = jit_evaluation(self.config, self.model, self.place.mesh)
        return evaluate_all(self.config, step, variables, self.source, self.place)


def open_trained(
    workdir: str, config: ConfigDict | None, place: sharding.Place, *, change: Callable[[ConfigDict], None], raw: bool
) -> Trained:
    """The newest checkpoint of `workdir`, or the one that it names.

    Args:
      workdir: see `checkpoint.locate`.
      config: None for the checkpoint's own.
      place: the devices and this process.
      change: makes of that config what the command line asks for.
      raw: the last weights, where averages are kept too.

    Raises:
      UserError: there is none, or it does not fit the config or the data.
    """
    checkpoint = locate(workdir)
    description = read_description(checkpoint)
    config = config or ConfigDict(description["config"])
    assert config is not None
    change(config)
    raise_all(evaluation_problems(config, place.mesh.size))
    source = open_data(config, "validation")
    same_classes(facts(source.info), description["dataset"], str(checkpoint))
    model = model_of(config, source.info.num_classes, place)
    variables = read_variables(checkpoint, sharding.replicated(place.mesh), raw=raw)
    images = jax.ShapeDtypeStruct(
        (1, config.data.image_size_px, config.data.image_size_px, len(config.data.mean)), "float32"
    )
    require_same_arrays(
        checkpoint,
        jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images),
        variables,
        "Leave out --config, for the checkpoint brings its own, or give the one that it was trained with.",
    )
    return Trained(checkpoint, description, config, place, source, model, variables)
