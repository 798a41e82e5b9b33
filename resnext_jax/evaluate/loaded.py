"""A checkpoint opened to be evaluated, alone or in an ensemble, with the data and the network of its config."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from resnext_jax import sharding
from resnext_jax.builders import build_model, first_difference, open_data, require_same_on_all_hosts
from resnext_jax.checkpoint import NETWORK, locate, read_description, read_variables
from resnext_jax.data.decode import rounding_of
from resnext_jax.data.sources import Source
from resnext_jax.errors import UserError
from resnext_jax.evaluate.answers import Recorder
from resnext_jax.evaluate.protocols import Classes, Member
from resnext_jax.evaluate.results import classes_of, conditions, evaluate_by_protocol, fill, in_words
from resnext_jax.json_files import WHOLE
from resnext_jax.models.zoo import Network
from resnext_jax.ops.keys import seed_key
from resnext_jax.types import PyTree

NAMED = {"config": dict, "dataset": NETWORK["dataset"]}  # forms of JSON items (`json_files.check_form`)
PATH = (str, None)
EVALUATED = NAMED | {
    "config": NETWORK["config"]
    | {
        "protocol?": str,
        "data": NETWORK["config"]["data"]
        | {"name": str, "dir": PATH, "class_list?": PATH, "on_bad_image?": str, "num_threads": WHOLE},
        "evaluate": {"batch_size": WHOLE, "ensemble?": PATH, "classes?": str, "class_map?": PATH, "real_labels?": PATH},
    }
}


@dataclasses.dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint that fits its data.

    Attributes:
      checkpoint: where it is.
      description: its JSON item.
      config: its own or the one that was given, with what the command line changes.
      classes: what their labels mean to the network.
      variables: `params` and `batch_stats`, replicated.
      others: the networks and the variables of the other members of an ensemble.
    """

    checkpoint: epath.Path
    description: dict[str, Any]
    config: ConfigDict
    place: sharding.Place
    source: Source
    classes: Classes
    model: Network
    variables: PyTree
    others: tuple[tuple[Member, PyTree], ...] = ()

    def evaluate(self, variables: PyTree, recorder: Recorder | None = None) -> dict[str, float]:
        """The results of the config's protocol, by name, with these variables for the checkpoint's own."""
        own = Member(self.model, self.config.data.mean, self.config.data.std)
        members = [(own, variables), *self.others]
        args = [member for member, _ in members], [arrays for _, arrays in members]
        return evaluate_by_protocol(self.config, *args, self.source, self.classes, self.place, recorder)

    @property
    def num_known(self) -> int:
        """Classes that the network knows."""
        return len(self.description["dataset"]["class_names"])

    def conditions(self) -> dict[str, Any]:
        """What the results are of (`results.conditions`)."""
        return {"data": self.source.info.name, **conditions(self.config, self.classes, self.num_known)}

    def in_words(self) -> str:
        """The same in words: `builtin (center, 28 px; 10 classes)`."""
        return f"{self.source.info.name} ({in_words(self.conditions(), self.num_known)})"


def load_checkpoint(
    workdir: str, config: ConfigDict | None, place: sharding.Place, *, prepare: Callable[[ConfigDict], None], raw: bool
) -> LoadedCheckpoint:
    """The newest checkpoint of `workdir`, or the one that it names.

    Args:
      workdir: see `checkpoint.locate`.
      config: None for the checkpoint's own.
      prepare: applies the overrides of the command line to that config and checks it.
      raw: load the last weights even if the checkpoint has averages.

    Raises:
      UserError: there is none, or it does not fit the config or the data.
    """
    checkpoint = locate(workdir)
    # With a config of the command line the checkpoint's own is not used.
    description = read_description(checkpoint, EVALUATED if config is None else NAMED)
    config = config or ConfigDict(description["config"])
    assert config is not None
    fill(config)
    prepare(config)
    with config.unlocked(), config.ignore_type():
        config.data.rounding = rounding_of(description)
    source = open_data(config, "validation")
    classes = classes_of(config, source, description["dataset"], str(checkpoint))
    require_same_on_all_hosts(place, validation=source)
    model, variables = _network(checkpoint, description, config, place, raw)
    given = config.evaluate.ensemble
    paths = [path.strip() for path in (given or "").split(",") if path.strip()]
    if given is not None and not paths:
        raise UserError(
            f"evaluate.ensemble={given!r} names no other checkpoint: leave it out, or give directories with commas "
            "between them."
        )
    others = tuple(
        _other(path, other, checkpoint, description, config, place, raw)
        for path, other in _located(paths, checkpoint).items()
    )
    return LoadedCheckpoint(checkpoint, description, config, place, source, classes, model, variables, others)


def _located(paths: Sequence[str], first: epath.Path) -> dict[str, epath.Path]:
    """The checkpoints of the other members of the ensemble of `first`; one that is there already is refused."""
    found: dict[str, epath.Path] = {}
    for path in paths:
        checkpoint = locate(os.path.expanduser(path))
        if any(os.path.realpath(checkpoint) == os.path.realpath(other) for other in (first, *found.values())):
            raise UserError(
                f"evaluate.ensemble names {checkpoint} although it is a member already: the checkpoint that is "
                f"evaluated, {first}, is one by itself, and each other one is named once. Leave {path} out."
            )
        found[path] = checkpoint
    return found


def _network(
    checkpoint: epath.Path, description: dict[str, Any], config: ConfigDict, place: sharding.Place, raw: bool
) -> tuple[Network, PyTree]:
    """The network of a config with the variables of a checkpoint."""
    model = build_model(config, len(description["dataset"]["class_names"]), place)
    images = jax.ShapeDtypeStruct(
        (1, config.data.image_size_px, config.data.image_size_px, len(config.data.mean)), "float32"
    )
    variables = read_variables(
        checkpoint,
        sharding.replicated(place.mesh),
        raw=raw,
        wanted=jax.eval_shape(partial(model.init, train=False), seed_key(0), images),
        advice="Leave out --config, for the checkpoint brings its own, or give the one that it was trained with.",
    )
    return model, variables


def _other(
    path: str,
    checkpoint: epath.Path,
    first: epath.Path,
    description: dict[str, Any],
    config: ConfigDict,
    place: sharding.Place,
    raw: bool,
) -> tuple[Member, PyTree]:
    """Another member of the ensemble of `first`, on whose images, and in whose sizes, it is tested."""
    theirs = read_description(checkpoint, NETWORK)
    differ = first_difference(description["dataset"]["class_names"], theirs["dataset"]["class_names"])
    if differ is not None:
        raise UserError(
            f"the members of an ensemble must know the same classes in the same order: {checkpoint} knows "
            f"{len(theirs['dataset']['class_names']):,}, and {first} {len(description['dataset']['class_names']):,}"
            f"{differ}. Leave {path} out of evaluate.ensemble, or take checkpoints of one data set."
        )
    own = config.copy_and_resolve_references()
    with own.unlocked(), own.ignore_type():
        own.model.update(theirs["config"]["model"])
        own.data.update({name: tuple(theirs["config"]["data"][name]) for name in ("mean", "std")})
    if len(own.data.mean) != len(config.data.mean):
        raise UserError(
            f"{checkpoint} takes images of {len(own.data.mean)} channels, and {first} of {len(config.data.mean)}: an "
            "ensemble (evaluate.ensemble) is tested on the images of the first. Leave it out."
        )
    model, variables = _network(checkpoint, theirs, own, place, raw)
    return Member(model, own.data.mean, own.data.std), variables
