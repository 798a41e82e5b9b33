"""The 1000 classes of ImageNet-1K: WordNet ids, as in folders and records, and English names."""

import functools
import pathlib
from collections.abc import Iterable, Mapping

FILE = pathlib.Path(__file__).with_name("imagenet_classes.tsv")


@functools.cache
def imagenet_classes() -> Mapping[str, str]:
    """Return a table from WordNet id to English name, in label order, which is the order of the sorted ids."""
    return dict(line.split("\t") for line in FILE.read_text(encoding="utf-8").splitlines())


def readable(class_names: Iterable[str]) -> tuple[str, ...]:
    """Return the names with every WordNet id of ImageNet-1K replaced by its English name."""
    names = imagenet_classes()
    return tuple(names.get(name, name) for name in class_names)
