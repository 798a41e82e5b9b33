"""The import order and which package may use what, read from the source without running it."""

import ast
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A package imports packages of the lines above its own; packages of one line do not import each other.
IMPORT_ORDER = (
    {"streams"},
    {"types", "errors", "progress"},
    {"files", "json_files"},
    {"ops"},
    {"models", "data", "optim", "metrics", "sharding", "checkpoint", "runtime"},
    {"builders"},
    {"evaluate"},
    {"config"},
    {"train"},
    {"convert", "analysis", "detection"},
    {"api"},
    {"cli"},
    {"main"},
)
LEVEL = {package: level for level, packages in enumerate(IMPORT_ORDER) for package in packages}
# `top` is resnext_jax/__init__.py: it may import every package, and no package imports it.
ONLY_IN = {
    "orbax": {"checkpoint"},
    "torch": {"convert"},
    "torchvision": {"convert"},
    "timm": {"convert"},
    "ml_collections": {"configs", "config", "builders", "evaluate", "train", "detection", "cli", "main"},
    "tensorflow_datasets": {"data"},
    "tensorflow": set(),
    "default_backend": {"cli", "api"},  # the two ways in: the command line and the notebook
    "PartitionSpec": {"sharding"},
}
# Single files that may use it too: they time a peer.
PEERS = {"resnext_jax/analysis/peer.py", "resnext_jax/data/bench/contenders.py"}
ALSO_IN = {"torch": PEERS, "torchvision": PEERS}
AXIS_FUNCTIONS = {
    *("Mesh", "make_mesh", "shard_map", "psum", "pmean", "pmax", "pmin", "psum_scatter", "ppermute"),
    *("all_gather", "all_to_all", "axis_index", "axis_size"),
}


def package_of(path: pathlib.PurePath) -> str:
    parts = path.with_suffix("").parts
    return {"__init__": "top"}.get(parts[1], parts[1]) if parts[0] == "resnext_jax" else parts[0]


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything imported, inside functions too: `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names)


def spellings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every attribute and every name that is used, `jax.default_backend` as `default_backend`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            yield node.lineno, node.attr if isinstance(node, ast.Attribute) else node.id


def axis_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of every string handed to a function that takes axis names, or as `axis_name` to any function."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        values = [keyword.value for keyword in call.keywords if keyword.arg and "axis_name" in keyword.arg]
        for value in [call] if function in AXIS_FUNCTIONS else values:
            for node in ast.walk(value):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.lineno, node.value


def problems(path: pathlib.PurePath, source: str) -> list[str]:
    """What this source, standing at this path of the repository, does against the rules."""
    package, tree, found = package_of(path), ast.parse(source), []
    if package not in {*LEVEL, "top", "configs"}:
        found.append((1, f"package {package!r} has no place in the import order"))
    for line, name in imports(tree):
        top, *rest = name.split(".")
        if name.startswith("."):
            found.append((line, "relative import"))
        elif package == "configs" and top != "ml_collections" and not re.match(r"configs\.(\w+_)?common", name):
            found.append((line, f"configs import ml_collections and bases of configs only, not {name}"))
        elif top in {"configs", "experiments", "tests", "main"} and package != "configs":
            found.append((line, f"{top} is never imported"))
        elif top == "resnext_jax" and package in LEVEL:
            other = rest[0] if rest else "top"
            if other != package and LEVEL.get(other, len(IMPORT_ORDER)) >= LEVEL[package]:
                found.append((line, f"{package} may not import {other}"))
    words = {(line, word) for line, name in imports(tree) for word in (name.split(".")[0], name.split(".")[-1])}
    for line, word in words | set(spellings(tree)):
        if package not in ONLY_IN.get(word, {package}) and path.as_posix() not in ALSO_IN.get(word, ()):
            found.append((line, f"{word} belongs to {', '.join(sorted(ONLY_IN[word])) or 'no package'}"))
    if package != "sharding":
        found += [(line, f"axis name {name!r} is spelled outside sharding") for line, name in axis_names(tree)]
    return [f"{path}:{line}: {text}" for line, text in sorted(found)]


def sources() -> list[pathlib.Path]:
    paths = [ROOT / "main.py", *ROOT.glob("resnext_jax/**/*.py"), *ROOT.glob("configs/**/*.py")]
    return sorted(path.relative_to(ROOT) for path in paths)


def test_every_file_keeps_the_rules():
    found = [text for path in sources() for text in problems(path, (ROOT / path).read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "problem"),
    [
        ("resnext_jax/models/zoo.py", "from resnext_jax.train import loop", "models may not import train"),
        ("resnext_jax/models/zoo.py", "from resnext_jax import optim", "models may not import optim"),
        ("resnext_jax/ops/x.py", "def f():\n    import resnext_jax.data.decode", "ops may not import data"),
        ("resnext_jax/evaluate/x.py", "import resnext_jax.train.step", "evaluate may not import train"),
        ("resnext_jax/cli.py", "import resnext_jax", "cli may not import top"),
        ("resnext_jax/ops/x.py", "from . import grouped_conv", "relative import"),
        ("resnext_jax/presets.py", "", "package 'presets' has no place"),
        ("resnext_jax/train/loop.py", "import orbax.checkpoint as ocp", "orbax belongs to checkpoint"),
        ("resnext_jax/data/decode.py", "from torch.nn import functional", "torch belongs to convert"),
        ("resnext_jax/analysis/aot.py", "import torch", "torch belongs to convert"),
        ("resnext_jax/data/decode.py", "import tensorflow as tf", "tensorflow belongs to no package"),
        ("resnext_jax/models/zoo.py", "import ml_collections", "ml_collections belongs to"),
        ("resnext_jax/ops/x.py", "import jax\njax.default_backend()", "default_backend belongs to api, cli"),
        ("resnext_jax/ops/x.py", "from jax import default_backend", "default_backend belongs to api, cli"),
        ("resnext_jax/train/x.py", "from jax.sharding import PartitionSpec as P", "PartitionSpec belongs to sharding"),
        ("resnext_jax/train/x.py", "jax.lax.psum(x, 'rows')", "axis name 'rows'"),
        ("resnext_jax/models/x.py", "nn.BatchNorm(axis_name='rows')", "axis name 'rows'"),
        ("configs/x.py", "import resnext_jax", "configs import ml_collections"),
        ("main.py", "import configs.common", "configs is never imported"),
    ],
)
def test_a_violation_is_found(path: str, source: str, problem: str):
    found = problems(pathlib.PurePath(path), source)
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("resnext_jax/cli.py", "import ml_collections\nfrom resnext_jax.train import loop\njax.default_backend()"),
        ("resnext_jax/models/zoo.py", "from resnext_jax.models import blocks\nfrom resnext_jax import ops, types"),
        ("resnext_jax/__init__.py", "from resnext_jax.models import zoo"),
        ("configs/x.py", "from ml_collections import ConfigDict\nfrom configs import common"),
        ("configs/x.py", "from configs.common import imagenet"),
        ("resnext_jax/analysis/peer.py", "import torch\nimport torchvision"),
        ("resnext_jax/api.py", "description.get('data')"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str):
    assert problems(pathlib.PurePath(path), source) == []


@pytest.mark.slow
def test_everything_imports_where_torch_and_tensorflow_are_absent():
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in sources()]
    names = [name for name in names if name.startswith("resnext_jax") and ".convert" not in name]
    program = f"import sys; sys.modules.update(torch=None, tensorflow=None); import {', '.join(names)}"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
