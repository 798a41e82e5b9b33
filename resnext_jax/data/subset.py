"""Sources made from other sources: the images of some classes only, and a stand-in for every broken image."""

import collections
import dataclasses
import itertools
import logging
import threading
from collections.abc import Sequence

import numpy as np

from resnext_jax.data.readers import GatherSource, Images, Labels, Record, Source, WrappedSource
from resnext_jax.errors import UserError, raise_all, unknown
from resnext_jax.files import read_names

ON_BAD_IMAGE = ("error", "replace")
MOST_BAD_IN_A_ROW = 100
MOST_LISTED = 5  # names in a message


def read_class_list(path: str, allowed: Sequence[str]) -> list[str]:
    """Return the class names in a file, one per line; empty lines are skipped.

    Raises:
      UserError: no such file, no name in it, a name twice, or one that is not in `allowed`.
    """
    names, known = read_names(path), set(allowed)
    strangers = [name for name in dict.fromkeys(names) if name not in known]
    problems = []
    # The closest match takes a millisecond for each name: only few are looked up.
    if len(strangers) <= MOST_LISTED and len(allowed) <= 20:
        problems += [f"{path}: {unknown('class', name, allowed)}" for name in strangers]
    elif strangers:
        listed = ", ".join(strangers[:MOST_LISTED]) + (", ..." if len(strangers) > MOST_LISTED else "")
        problems.append(
            f"{path}: {len(strangers)} class(es) are not among the {len(allowed):,} of the data set: {listed}. "
            f"Its names look like {allowed[0]!r}; remove or correct those lines."
        )
    repeated = [(name, count) for name, count in collections.Counter(names).items() if count > 1]
    problems += [
        f"{path} has {name!r} {count} times. Keep one of these lines." for name, count in repeated[:MOST_LISTED]
    ]
    if len(repeated) > MOST_LISTED:
        problems.append(f"{path} has {len(repeated) - MOST_LISTED:,} more names several times.")
    raise_all(problems)
    return names


class SubsetSource:
    """The images of some classes, labeled 0, 1, ... in the order of the whole set, whose names they keep."""

    def __init__(self, source: Source, class_names: Sequence[str]):
        is_kept = np.isin(source.info.class_names, class_names)
        new_label, labels = np.cumsum(is_kept, dtype=np.int32) - 1, source.all_labels()
        self.source, self.indices = source, np.flatnonzero(is_kept[labels])
        self.labels = new_label[labels[self.indices]]
        names = tuple(itertools.compress(source.info.class_names, is_kept))
        self.info = dataclasses.replace(source.info, num_images=len(self.indices), class_names=names)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.indices[index])]._replace(label=int(self.labels[index]))

    def locate(self, index: int) -> str:
        return self.source.locate(int(self.indices[index]))

    def all_labels(self) -> Labels:
        return self.labels


class GatherSubsetSource(SubsetSource):
    """A `SubsetSource` of a source that fills whole batches."""

    source: GatherSource

    def gather(self, indices: Labels) -> tuple[Images, Labels]:
        return self.source.gather(self.indices[indices])[0], self.labels[indices]


def subset(source: Source, class_names: Sequence[str], where: str) -> Source:
    """Return the images of `class_names`, which `where` lists; raises UserError if there is none."""
    part = (GatherSubsetSource if isinstance(source, GatherSource) else SubsetSource)(source, class_names)
    if not len(part):
        raise UserError(
            f"no image of {source.info.name!r} is of a class in {where}, in this split. Name classes that have images."
        )
    return part


class ReplacingSource(WrappedSource):
    """A source that has a stand-in for each image that cannot be read: the next one in order that can.

    So what stands in depends on the data alone: not on the step, the process or the thread.
    """

    def __init__(self, source: Source):
        super().__init__(source)
        self._lock, self.bad_indices = threading.Lock(), set()

    def stand_in(self, index: int, error: UserError) -> int:
        """Return the index to read instead; warns once per index, raises UserError after MOST_BAD_IN_A_ROW indices."""
        with self._lock:
            first = index not in self.bad_indices
            self.bad_indices.add(index)
            count = len(self.bad_indices)
            behind = (index - np.arange(MOST_BAD_IN_A_ROW)) % len(self)
            endless = self.bad_indices.issuperset(behind.tolist())
        if endless:
            raise UserError(
                f"{len(set(behind.tolist()))} images in a row could not be read, the last: {error} This is not a few "
                "broken images: copy or prepare the data again."
            )
        if first:
            logging.getLogger(__name__).warning(
                "%s The next image stands in for it (data.on_bad_image=replace; %d such so far).", error, count
            )
        return (index + 1) % len(self)

    def __getstate__(self):
        return {"source": self.source}

    def __setstate__(self, state):
        self.__init__(state["source"])
