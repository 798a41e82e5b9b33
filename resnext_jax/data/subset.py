"""Sources made from other sources: the images of some classes only, and a stand-in for every broken image."""

import dataclasses
import logging
import threading
from collections.abc import Sequence

import numpy as np
from etils import epath

from resnext_jax.data.readers import GatherSource, Images, Labels, Record, Source
from resnext_jax.errors import UserError, raise_all, unknown

ON_BAD_IMAGE = ("error", "replace")
MOST_BAD_IN_A_ROW = 100


def read_class_list(path: str, allowed: Sequence[str]) -> list[str]:
    """The class names in a file, one per line; empty lines are skipped.

    Raises:
      UserError: no such file, no name in it, a name twice, or one that is not in `allowed`.
    """
    try:
        names = [line.strip() for line in epath.Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} could not be read: {reason}. A class list has one class name per line.") from None
    if not names:
        raise UserError(f"{path} has no class name in it. Write one per line.")
    known = set(allowed)
    strangers = [name for name in dict.fromkeys(names) if name not in known]
    problems = []
    if len(allowed) <= 20:
        problems += [f"{path}: {unknown('class', name, allowed)}" for name in strangers]
    elif strangers:
        listed = ", ".join(strangers[:5]) + (", ..." if len(strangers) > 5 else "")
        problems.append(
            f"{path}: {len(strangers)} class(es) are not among the {len(allowed):,} of the data set: {listed}. "
            f"Its names look like {allowed[0]!r}; remove or correct those lines."
        )
    problems += [
        f"{path} has {name!r} {count} times. Keep one of these lines."
        for name, count in ((name, names.count(name)) for name in dict.fromkeys(names) if len(set(names)) < len(names))
        if count > 1
    ]
    raise_all(problems)
    return names


class SubsetSource:
    """The images of some classes, labelled 0, 1, ... in the order of the whole set, whose names they keep."""

    def __init__(self, source: Source, class_names: Sequence[str]):
        wanted = set(class_names)
        whole = source.info.class_names
        kept = [label for label, name in enumerate(whole) if name in wanted]
        new_label = np.full(len(whole), -1, np.int32)
        new_label[kept] = np.arange(len(kept))
        labels = new_label[source.all_labels()]
        self.source, self.indices = source, np.flatnonzero(labels >= 0)
        self.labels = labels[self.indices]
        names = tuple(whole[label] for label in kept)
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
    """The same of a source that fills whole batches."""

    source: GatherSource

    def gather(self, indices: Labels) -> tuple[Images, Labels]:
        return self.source.gather(self.indices[indices])[0], self.labels[indices]


def subset(source: Source, class_names: Sequence[str], where: str) -> Source:
    """The images of `class_names`, which `where` lists.

    Raises:
      UserError: there is none.
    """
    part = (GatherSubsetSource if isinstance(source, GatherSource) else SubsetSource)(source, class_names)
    if not len(part):
        raise UserError(
            f"no image of {source.info.name!r} is of a class in {where}, in this split. Name classes that have images."
        )
    return part


class ReplacingSource:
    """A source that has a stand-in for each image that cannot be read: the next one in order that can.

    So what stands in depends on the data alone: not on the step, the process or the thread.
    """

    def __init__(self, source: Source):
        self.source, self.info = source, source.info
        self._lock, self.bad_indices = threading.Lock(), set()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return self.source[index]

    def locate(self, index: int) -> str:
        return self.source.locate(index)

    def all_labels(self) -> Labels:
        return self.source.all_labels()

    def stand_in(self, index: int, error: UserError) -> int:
        """The index to read instead of `index`, which could not be read; warns the first time.

        Raises:
          UserError: there is no end of broken images.
        """
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
        other = (index + 1) % len(self)
        if first:
            logging.getLogger(__name__).warning(
                "%s The next image stands in for it (data.on_bad_image=replace; %d such so far).", error, count
            )
        return other

    def __getstate__(self):
        return {"source": self.source}

    def __setstate__(self, state):
        self.__init__(state["source"])
