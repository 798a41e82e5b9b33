"""The answers of a network for every image, collected while a protocol is evaluated; reports are made of them."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from resnext_jax import metrics
from resnext_jax.data.readers import GatherSource, Images, Labels, Record, Source, WrappedSource
from resnext_jax.errors import UserError
from resnext_jax.evaluate.protocols import Classes, Member, count_right, logits_and_labels
from resnext_jax.sharding import Place, gather_bytes
from resnext_jax.types import Batch, Leaf, PyTree

NUM_TOP = 5


class Rows(struct.PyTreeNode):
    """The answers for one batch.

    Attributes:
      key: int32 (batch,), the label of the batch: the index of the image, or its number for ReaL labels.
      mask: (batch,), 1 for an image, 0 for padding.
      rank: int32 (batch,), 1 where the most probable class is right.
      probability: float32 (batch,), that of all right classes together.
      top, top_probability: (batch, NUM_TOP or fewer), the most probable classes among the candidates.
    """

    key: Leaf
    mask: Leaf
    rank: Leaf
    probability: Leaf
    top: Leaf
    top_probability: Leaf


def answer_step(
    variables: Sequence[PyTree], batch: Batch, *, members: Sequence[Member], mirrored: bool, classes: Classes
) -> tuple[metrics.Sums, Rows]:
    """Return the sums of one batch, as `protocols.score_step`, and the answers for its images."""
    logits, labels = logits_and_labels(variables, batch, members=members, mirrored=mirrored, classes=classes)
    sums = count_right(logits, labels, batch.mask, classes)
    right = labels[:, None] if classes.accepted is None else jnp.asarray(classes.accepted)[labels]
    return sums, rank_rows(logits, right, batch)


def rank_rows(logits: Float[Array, "batch classes"], right: Int[Array, "batch most"], batch: Batch) -> Rows:
    """Return the ranks of the classes as `metrics.count` sees them: a wrong class wins a tie, and so does a NaN.

    Args:
      right: the right classes of each image, padded with -1.
    """
    places = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    is_right = (places[None, None] == right[:, :, None]).any(axis=1)
    scores = jnp.where(jnp.isnan(logits), jnp.where(is_right, -jnp.inf, jnp.inf), logits)
    columns = jnp.broadcast_to(places[None], logits.shape)
    _, right_in_order, order = jax.lax.sort((-scores, is_right.astype(jnp.int32), columns), dimension=1, num_keys=2)
    probabilities = jax.nn.softmax(logits)
    top = order[:, :NUM_TOP]
    return Rows(
        key=batch.label,
        mask=batch.mask,
        rank=1 + jnp.argmax(right_in_order, axis=-1).astype(jnp.int32),
        probability=jnp.sum(jnp.where(is_right, probabilities, 0.0), axis=-1),
        top=top,
        top_probability=jnp.take_along_axis(probabilities, top, axis=-1),
    )


class NotedSource(WrappedSource):
    """The images of a source with their indices in place of labels; it notes the name of each image that is read.

    With `keeps_labels` the labels stay: those of a `NumberedSource` say which image it is.
    """

    def __init__(self, source: Source, *, keeps_labels: bool):
        super().__init__(source)
        self.keeps_labels = keeps_labels
        self.notes: dict[int, tuple[int, str]] = {}  # index -> key of `Rows`, name
        if isinstance(source, GatherSource):
            self.gather = partial(self._gather, source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        key = record.label if self.keeps_labels else index
        self.notes[index] = key, record.name
        return record._replace(label=key)

    def _gather(self, source: GatherSource, indices: Labels) -> tuple[Images, Labels]:
        self.notes |= {index: (index, source.locate(index)) for index in indices.tolist()}
        return source.gather(indices)[0], indices


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers for all images, in the order of the source. Labels are those of the network.

    Attributes:
      indices: place of each image in the source.
      names: path or name of each image.
      right: right labels of each image; of ReaL's there may be none.
      rank: place of the best right class among all; 1 is the first.
      probability: of all right classes together.
      top, top_probability: (images, NUM_TOP or fewer), the most probable classes.
    """

    indices: list[int]
    names: list[str]
    right: list[tuple[int, ...]]
    rank: Int[np.ndarray, " images"]
    probability: Float[np.ndarray, " images"]
    top: Int[np.ndarray, "images top"]
    top_probability: Float[np.ndarray, "images top"]

    @property
    def counted(self) -> np.ndarray:
        """Which images have a right label."""
        return np.array([bool(labels) for labels in self.right], bool)


class Recorder:
    """Collects the answers of one evaluation; `results.evaluate_by_protocol` calls `watch` and `keep`."""

    def __init__(self):
        self._rows: list[Rows] = []

    def watch(self, source: Source, classes: Classes) -> tuple[Source, Classes]:
        """Return the source and the classes to evaluate with: a label then says which image it is."""
        self._source = NotedSource(source, keeps_labels=classes.accepted is not None)
        if classes.accepted is None:
            classes = dataclasses.replace(classes, label_of=classes.label_of[source.all_labels()])
        self._classes = classes
        return self._source, classes

    def keep(self, step: Callable[[PyTree, Batch], Any]) -> Callable[[PyTree, Batch], metrics.Sums]:
        """Return a step that gives the sums of `step`, a jitted `answer_step`, and keeps the answers."""

        def keeping(variables: PyTree, batch: Batch) -> metrics.Sums:
            sums, rows = step(variables, batch)
            self._rows.append(rows)  # on the device: the host must not wait for it
            return sums

        return keeping

    def answers(self, place: Place) -> Answers:
        """Return the answers for all images, on every process. A barrier for all.

        Raises:
          UserError: two images have one number, so that the answers of one would stand for both.
        """
        notes: dict[int, tuple[int, str]] = {}
        for part in gather_bytes(place, json.dumps(list(self._source.notes.items())).encode()):
            for index, (key, name) in json.loads(part):
                if key in notes and notes[key][0] != index:
                    raise UserError(
                        f"{notes[key][1]} and {name} have the same number: a report needs each image once. Remove one."
                    )
                notes[key] = index, name
        rows = jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(self._rows))
        is_image = rows.mask > 0
        indices = np.array([notes[key][0] for key in rows.key[is_image].tolist()])
        order = np.flatnonzero(is_image)[np.argsort(indices)]
        keys, labels, accepted = rows.key[order].tolist(), self._classes.label_of, self._classes.accepted
        candidates = self._classes.candidates
        return Answers(
            indices=[notes[key][0] for key in keys],
            names=[notes[key][1] for key in keys],
            right=[
                (int(labels[key]),) if accepted is None else tuple(accepted[key][accepted[key] >= 0].tolist())
                for key in keys
            ],
            rank=rows.rank[order],
            probability=rows.probability[order],
            top=rows.top[order] if candidates is None else candidates[rows.top[order]],
            top_probability=rows.top_probability[order],
        )
