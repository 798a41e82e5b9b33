"""Evaluation of a checkpoint or an ensemble by a protocol: from the fields of a config to one row of results."""

import collections
import os
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from resnext_jax import metrics, sharding
from resnext_jax.data.decode import TORCH7
from resnext_jax.data.imagenet_classes import imagenet_classes
from resnext_jax.data.real_labels import NumberedSource, read_real_labels
from resnext_jax.data.sources import Source
from resnext_jax.data.views import view_batches
from resnext_jax.errors import UserError
from resnext_jax.evaluate.answers import Recorder, answer_step
from resnext_jax.evaluate.protocols import PROTOCOLS, Classes, Member, Protocol, score_step
from resnext_jax.evaluate.validation import add_up, center_batches
from resnext_jax.json_files import WHOLE, parse_json
from resnext_jax.types import Batch, PyTree

# The fields of an evaluation that the config of converted weights leaves out.
DEFAULTS: dict[str, Any] = {"ensemble": None, "classes": "all", "class_map": None, "real_labels": None}


def fill(config: ConfigDict) -> None:
    """Add the fields of an evaluation that the config of a checkpoint leaves out."""
    with config.unlocked(), config.ignore_type():
        config.protocol = config.get("protocol", "center")
        config.data.interpolation = config.data.get("interpolation", "bicubic")
        for name, value in DEFAULTS.items():
            config.evaluate[name] = config.evaluate.get(name, value)


def classes_of(config: ConfigDict, source: Source, known: dict[str, Any], checkpoint: str) -> Classes:
    """What the labels of the data mean to a network that knows the classes of `known`, a checkpoint's `dataset`.

    Raises:
      UserError: a class of the data is not among them, or the file that says which is wrong.
    """
    own, names = source.info.class_names, known["class_names"]
    if config.evaluate.class_map:
        label_of = read_class_map(config.evaluate.class_map, len(own), len(names))
    else:
        place = {name: label for label, name in enumerate(names)}
        strangers = [name for name in own if name not in place]
        if strangers:
            raise UserError(
                f"the checkpoint {checkpoint} knows the {len(names)} classes of {known['name']!r}, but "
                f"{source.info.name!r} has {len(own)}, and {len(strangers)} of these are not among them: "
                f"{', '.join(strangers[:3])}{', ...' if len(strangers) > 3 else ''} (it knows {', '.join(names[:3])}, "
                "...). Use data of its classes, or say which of them each class of the data is: "
                "--config.evaluate.class_map=FILE, the manifest.json of a prepared imagenet5k, or a text file with one "
                "label per line."
            )
        label_of = np.array([place[name] for name in own], np.int32)
    candidates = accepted = None
    if config.evaluate.classes == "present":
        candidates = np.unique(label_of[np.unique(source.all_labels())])
    if config.evaluate.real_labels:
        # The labels are those of the sorted WordNet ids. A network that calls its classes otherwise may have another
        # order, unless the data's ids say which is which.
        usual, in_order = tuple(imagenet_classes()), np.array_equal(label_of, np.arange(len(names)))
        if tuple(names) != usual and not (tuple(own) == usual and in_order):
            raise UserError(
                f"evaluate.real_labels are labels of ImageNet's 1000 classes in the order of their WordNet ids, "
                f"{usual[0]} first; {checkpoint} knows {len(names):,} classes, {names[0]} first, and the data have "
                f"{len(own):,}, {own[0]} first. Leave them out, or take data whose classes are named by these ids."
            )
        accepted = read_real_labels(config.evaluate.real_labels)
    return Classes(label_of, candidates, accepted)


def read_class_map(path: str, num_data_classes: int, num_classes: int) -> np.ndarray:
    """The network's label of each class of the data, from a prepared directory's manifest or from lines.

    Raises:
      UserError: it cannot be read, has another number of classes, or a label that does not exist or comes twice.
    """
    advice = "One label per line, in the order of the data's classes, or the manifest.json of a prepared imagenet5k."
    try:
        content = epath.Path(os.path.expanduser(path)).read_bytes()
        if content.startswith(b"{"):
            labels = parse_json(content, {"notes": {"imagenet1k_labels": [WHOLE]}})["notes"]["imagenet1k_labels"]
        else:
            labels = [int(label) for label in content.decode("utf-8-sig").split()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or repr(error)
        raise UserError(f"evaluate.class_map={path} cannot be read: {reason}. {advice}") from None
    if len(labels) != num_data_classes:
        raise UserError(
            f"evaluate.class_map={path} has {len(labels):,} labels, and the data {num_data_classes:,} classes. {advice}"
        )
    times = collections.Counter(labels)
    wrong = next((x for x in labels if not 0 <= x < num_classes or times[x] > 1), None)
    if wrong is not None:
        raise UserError(
            f"evaluate.class_map={path} has the label {wrong}: each must be in [0, {num_classes:,}), the checkpoint's "
            f"classes, and stand there once. {advice}"
        )
    return np.array(labels, np.int32)


def evaluate_by_protocol(
    config: ConfigDict,
    members: Sequence[Member],
    variables: Sequence[PyTree],
    source: Source,
    classes: Classes,
    place: sharding.Place,
    recorder: Recorder | None = None,
) -> dict[str, float]:
    """Loss, top-1, top-5 with their intervals, and the number of images.

    Args:
      config: which protocol, on what.
      members: the networks, each with its normalisation.
      variables: variables of each network, replicated.
      classes: what their labels mean to the networks.
      recorder: collects the answer for every image.
    """
    protocol = PROTOCOLS[config.protocol]
    if protocol.dense:
        members = [member.dense(config.data.image_size_px) for member in members]
    if classes.accepted is not None:
        source = NumberedSource(source)
    if recorder is not None:
        source, classes = recorder.watch(source, classes)
    everywhere, split = sharding.replicated(place.mesh), sharding.batch_sharding(place.mesh)
    step = jax.jit(
        partial(
            score_step if recorder is None else answer_step,
            members=members,
            mirrored=protocol.mirrored,
            classes=classes,
        ),
        in_shardings=(everywhere, split),
        out_shardings=everywhere,
    )
    step = step if recorder is None else recorder.keep(step)
    sums = add_up(step, tuple(variables), batches_of(config, protocol, source, place), source, place)
    if not sums.images:
        raise UserError(f"none of the {len(source):,} images has a right answer in {config.evaluate.real_labels}.")
    return metrics.means(sums) | intervals(sums) | {"images": int(sums.images)}


def batches_of(config: ConfigDict, protocol: Protocol, source: Source, place: sharding.Place) -> Generator[Batch]:
    """This process's rows of the batches of a protocol."""
    if protocol.views is None:
        sizes = dict(image_size_px=protocol.image_size_px, resize_px=protocol.resize_px)
        return center_batches(config, source, place, **sizes)
    data = config.data
    return view_batches(
        source,
        protocol.views(data.image_size_px, data.resize_px, data.interpolation, data.get("rounding", TORCH7)),
        batch_size=config.evaluate.batch_size,
        process=(place.process_index, place.process_count),
        num_threads=data.num_threads,
    )


def conditions(config: ConfigDict, classes: Classes, num_known: int) -> dict[str, Any]:
    """What a row of results is of, for those who read it: protocol, sizes, classes, labels, and the other networks.

    Args:
      config: which protocol, on what.
      classes: what the labels mean.
      num_known: classes that the networks know.
    """
    protocol, data, given = PROTOCOLS[config.protocol], config.data, config.evaluate
    resized = None if protocol.dense or data.crop == "none" else protocol.resize_px or data.resize_px
    return {
        "protocol": config.protocol,
        "image_size_px": protocol.image_size_px or data.image_size_px,
        "resize_px": resized,
        "classes": given.classes,
        "num_classes": num_known if classes.candidates is None else len(classes.candidates),
        **{name: given[name] for name in ("ensemble", "class_map", "real_labels") if given[name]},
    }


def in_words(of: dict[str, Any], num_known: int) -> str:
    """`conditions` in half a line: `center, 224 px of 256; 1,000 classes`."""
    size = f"{of['image_size_px']} px" + (f" of {of['resize_px']}" if of["resize_px"] else "")
    parts = [f"{of['protocol']}, {size}", f"{of['num_classes']:,} classes"]
    if of["classes"] == "present":
        parts[1] = f"the {of['num_classes']:,} of {num_known:,} classes that they have"
    if "real_labels" in of:
        parts.append("ReaL labels")
    if "ensemble" in of:
        parts.append(f"an ensemble with {of['ensemble']}")
    return "; ".join(parts)


def intervals(sums: metrics.Sums) -> dict[str, float]:
    """`top1_low` to `top5_high`: between which accuracies the true ones lie (`metrics.interval`)."""
    found = {}
    for name, right in (("top1", sums.top1), ("top5", sums.top5)):
        found[f"{name}_low"], found[f"{name}_high"] = metrics.interval(int(right), int(sums.images))
    return found
