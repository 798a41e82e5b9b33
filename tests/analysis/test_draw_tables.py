"""The picture of a page's tables: what is read, what is drawn, and that the page's own is of today."""

import json

import matplotlib.image
import pytest
import tiny
from absl import flags
from PIL import Image

from resnext_jax.analysis import draw_tables

PAGE = """# Cycles

| network, M cycles | `auto` | goal | native / auto | later |
|---|---|---|---|---|
| ResNet-50 | 20.30 | 22 | 1.4 | |
| ResNeXt-50 | 27.24 (and `native` 95.86) | | 3.5 | |

| images per second | ours |
|---|---|
| CPU | 7.0 |

| part, M cycles | forward | backward |
|---|---|---|
| stem | 1.5 | 0.5 |
"""


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: draw_tables.main(["draw_tables", *arguments])


def test_tables_of_cycles_and_nothing_else():
    networks, step = draw_tables.tables_of(PAGE)
    assert networks.title == "network, M cycles"
    assert networks.rows == ("ResNet-50", "ResNeXt-50")
    assert networks.columns == {"auto": (20.3, 27.24), "goal": (22.0, None)}
    assert step.columns == {"forward": (1.5,), "backward": (0.5,)}


def test_the_picture_says_what_it_shows(command, tmp_path, capsys):
    (tmp_path / "page.md").write_text(PAGE)
    command("page.md", "--out=a.png")
    assert capsys.readouterr().out == "a.png\n"
    shown = json.loads(Image.open(tmp_path / "a.png").text["Description"])  # pyright: ignore
    assert [table["rows"] for table in shown] == [["ResNet-50", "ResNeXt-50"], ["stem"]]
    image = matplotlib.image.imread(tmp_path / "a.png")[..., :3].reshape(-1, 3)
    assert len({tuple(color) for color in image[::7].round(2)}) > 3  # not an empty page


def test_the_picture_of_the_page_has_its_numbers():
    """Else: python -m resnext_jax.analysis.draw_tables docs/performance.md --out=docs/performance_cycles.png"""
    tables = draw_tables.tables_of((tiny.ROOT / "docs" / "performance.md").read_text())
    assert len(tables) == 3
    picture = Image.open(tiny.ROOT / "docs" / "performance_cycles.png")
    assert picture.text["Description"] == draw_tables.description(tables)  # pyright: ignore


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one page"),
        (("absent.md",), "No such file"),
        (("empty.md",), "no table whose first cell ends with 'M cycles'"),
        (("page.md", "--out=absent/a.png"), "--out=absent/a.png cannot be written"),
    ],
)
def test_mistakes(command, tmp_path, capsys, arguments, words):
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "empty.md").write_text("# Nothing\n")
    with pytest.raises(SystemExit) as exit_:
        command(*arguments)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err
