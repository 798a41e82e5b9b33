"""Both stages of a detector in one command: the RPN in `workdir/rpn`, then Fast R-CNN in `workdir` itself."""

from typing import Any

from etils import epath
from ml_collections import ConfigDict

from resnext_jax import builders, sharding
from resnext_jax.checkpoint import NETWORK, locate, read_description
from resnext_jax.detection.checks import problems_of
from resnext_jax.detection.recipe import STAGES, rate_warning, stage_config
from resnext_jax.detection.sources import open_source, require_apart
from resnext_jax.detection.task import Detection
from resnext_jax.errors import UserError, raise_all
from resnext_jax.progress import say
from resnext_jax.sharding import Place
from resnext_jax.train.finetune import own_config
from resnext_jax.train.loop import train

RPN_DIRECTORY = "rpn"


def train_detector(config: ConfigDict, workdir: str, place: Place, environment: dict[str, Any]) -> None:
    """Train both stages, or go on where they were left; each is a run of `train.loop` with a workdir of its own.

    Raises:
      UserError: on every process, with every problem of the config or the data.
      Preempted: after a SIGTERM, once the state is saved.
    """
    tasks, error = [], None
    try:
        tasks = open_stages(config, workdir, place)
    except UserError as caught:
        error = caught
    sharding.raise_if_any(place, error)
    training, validation = tasks[0].training, tasks[0].validation
    assert training is not None
    assert validation is not None
    builders.require_same_on_all_hosts(place, train=training, validation=validation)
    if place.is_primary:
        for line in (*tasks[0].notes, *filter(None, (rate_warning(task.config) for task in tasks))):
            say(line)
    for task, directory in zip(tasks, (rpn_dir_of(workdir), workdir), strict=True):
        train(task, task.config, directory, place, environment)


def rpn_dir_of(workdir: str) -> str:
    """Return the workdir of the first stage."""
    return str(epath.Path(workdir) / RPN_DIRECTORY)


def open_stages(config: ConfigDict, workdir: str, place: Place) -> list[Detection]:
    """Open the data of a config and return the tasks of both stages.

    Raises:
      UserError: every problem of the config, or of the data.
    """
    raise_all(problems_of(config, place.mesh.size, place.process_count))
    config = fill_from_classifier(config, workdir)
    training, validation = open_source(config.data.dir, "train"), open_source(config.data.dir, "validation")
    require_apart(training.data, validation.data)
    if training.data.class_names != validation.data.class_names:
        raise UserError(
            f"{config.data.dir}: training has the classes {', '.join(training.data.class_names[:5])}, ..., and "
            f"validation {', '.join(validation.data.class_names[:5])}, ...: both need the same categories."
        )
    data = {"training": training, "validation": validation, "rpn_dir": rpn_dir_of(workdir)}
    tasks = [Detection(stage_config(config, stage), place, training.info, **data) for stage in STAGES]
    for task in tasks:
        task.state_shapes()  # an impossible network is found before anything is written
    return tasks


def fill_from_classifier(config: ConfigDict, workdir: str) -> ConfigDict:
    """Return the config with the network and the normalization of `init_from` where it leaves them open.

    Args:
      workdir: directory of the run. Once it has a checkpoint, that one has them too.

    Raises:
      UserError: there is no such checkpoint, or none is given.
    """
    if config.init_from is None:
        raise UserError(
            "a detector starts from a classifier: give the checkpoint of one that was trained on ImageNet-1K, "
            "--config.init_from=DIR (the workdir of a run, or what python -m resnext_jax.convert wrote)."
        )
    theirs = own_config(workdir) or own_config(rpn_dir_of(workdir))
    theirs = theirs or read_description(locate(config.init_from), NETWORK)["config"]
    filled = config.copy_and_resolve_references()
    with filled.unlocked(), filled.ignore_type():
        if not config.model.name:
            filled.model = ConfigDict(theirs["model"])
        for name in ("mean", "std"):
            if config.data[name] is None:
                filled.data[name] = tuple(theirs["data"][name])
    if len(filled.data.mean) != 3:
        raise UserError(
            f"{config.init_from} was trained on images of {len(filled.data.mean)} channel(s), and a detector takes RGB "
            "images: give a classifier of color images."
        )
    return filled
