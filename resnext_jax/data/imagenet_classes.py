"""The 1000 classes of ImageNet-1K: WordNet ids, which name folders and records, and English names for people."""

import functools
import pathlib
from collections.abc import Iterable, Mapping

FILE = pathlib.Path(__file__).with_name("imagenet_classes.tsv")


@functools.cache
def imagenet_classes() -> Mapping[str, str]:
    """WordNet id -> English name, in label order: the ids sorted, as every set of weights has them."""
    return dict(line.split("\t") for line in FILE.read_text(encoding="utf-8").splitlines())


def readable(class_names: Iterable[str]) -> tuple[str, ...]:
    """The English name of every WordNet id among these; a name that is none (or not of the 1000) stays as it is."""
    names = imagenet_classes()
    return tuple(names.get(name, name) for name in class_names)
