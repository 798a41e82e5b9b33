"""What the pages name is there: tests, files and fields of configs."""

import importlib
import inspect
import pathlib
import re

import pytest
import tiny

import resnext_jax
from configs import detection_common
from resnext_jax.config import command_line

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")], key=str)
PAGES += sorted((ROOT / "experiments").glob("*/README.md"))
FIELDS = set(command_line.field_names(tiny.config())) | set(command_line.field_names(detection_common.base()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_what_is_there(page):
    text = page.read_text()
    file = ""
    for named, test in re.findall(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)?(?:::(test_\w+))?`", text):
        file = named or file  # `::test` is of the file named before it
        if named or test:
            source = (ROOT / "tests" / file).read_text()
            assert not test or f"\ndef {test}(" in source, (file, test)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    fields = [field for field in re.findall(r"--config\.([a-z_.]+)=", text) if field not in FIELDS]
    assert [field for field in fields if field.upper() != field] == []


def test_what_can_be_imported_can():
    names = re.findall(r"^\| `(resnext_jax\.[\w.]+)`", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert len(names) == 25
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    public = re.findall(r"^\| `(?!net\()(\w+)[(`]", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(public) == sorted(resnext_jax.__all__)


def test_signatures_of_the_api_are_as_written():
    """Names, defaults and what is by keyword alone; and nothing public of a Net is left out."""
    text = (ROOT / "docs" / "api.md").read_text()
    rows = re.findall(r"^\| `(net\.)?(\w+)\((.*?)\)`", text, re.MULTILINE)
    written = {(bool(net), name): arguments for net, name, arguments in rows}
    functions = {(False, name): getattr(resnext_jax, name) for name in ("load", "build", "list_models")}
    methods = {name: method for name, method in vars(resnext_jax.Net).items() if inspect.isfunction(method)}
    functions |= {(True, name): method for name, method in methods.items() if not name.startswith("_")}
    functions[False, "net"] = methods["__call__"]
    assert written.keys() == functions.keys()
    for key, function in functions.items():
        parameters = [one for one in inspect.signature(function).parameters.values() if one.name != "self"]
        bare = [one.replace(annotation=inspect.Parameter.empty) for one in parameters]
        assert str(inspect.Signature(bare)) == f"({written[key]})".replace('"', "'"), key
    for attribute in ("model", "variables", "config", "class_names"):
        assert f"| `net.{attribute}` |" in text


def test_anchors():
    """A link to a heading, of its own page or of another."""
    for page in PAGES:
        for file, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
            if "://" not in file:
                text = (page.parent / file).read_text() if file else page.read_text()
                headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, (page.name, anchor)
