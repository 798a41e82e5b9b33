"""The 1000 classes: their order and their names, against torchvision's list and TFDS's and timm's WordNet ids."""

import importlib.resources
from pathlib import Path

import tensorflow_datasets

from resnext_jax.data.imagenet_classes import imagenet_classes, readable
from resnext_jax.data.prepare.imagenet import imagenet1k_classes


def test_names_in_torchvisions_order(torchvision):
    categories = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    assert list(imagenet_classes().values()) == categories
    assert len(set(categories)) == 1000


def test_wordnet_ids_in_label_order(torchvision):
    wnids = list(imagenet_classes())
    labels = Path(str(tensorflow_datasets.__file__)).parent / "image_classification" / "imagenet_resized_labels.txt"
    assert wnids == sorted(labels.read_text().split())
    assert wnids == imagenet1k_classes()  # what prepared data has


def test_each_name_belongs_to_its_id(torchvision):
    """WordNet's own words, which timm has; two names were made unique by what they are."""
    import timm

    lemmas = importlib.resources.files(timm) / "data" / "_info" / "imagenet_synset_to_lemma.txt"
    words = dict(line.split("\t") for line in lemmas.read_text().splitlines())
    names = imagenet_classes()
    assert names["n02012849"] == "crane bird"
    assert names["n03710721"] == "maillot tank suit"
    for wnid, name in names.items():
        assert name in ("crane bird", "maillot tank suit") or name.lower() in words[wnid].lower()


def test_readable():
    assert readable(["n01440764", "cat", "n15075141"]) == ("tench", "cat", "toilet tissue")
