"""The picture of compile reports: what is read, and what is refused."""

import json

import matplotlib.image
import pytest
from absl import flags

from resnext_jax.analysis import draw

OURS = {"conv_impl": "auto", "fits": True, "floor_cycles": 500_000, "parts": {"1x1": {"forward": 4e6, "backward": 8e6}}}
TOO_LARGE = {"conv_impl": "native", "fits": False, "floor_cycles": None, "parts": None}
REPORT = {"config": "configs/resnext50_32x4d.py", "topology": "v5e:2x4", **OURS}


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: draw.main(["draw", *arguments])


def test_bars(tmp_path):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(REPORT | {"compare": OURS | {"conv_impl": "native", "floor_cycles": 0}}))
    assert draw.bars_of(str(file)) == [
        ("resnext50_32x4d\nauto, v5e:2x4", {"1x1": 12.0}, 0.5),
        ("resnext50_32x4d\nnative, v5e:2x4", {"1x1": 12.0}, 0.0),
    ]
    file.write_text(json.dumps(REPORT | {"compare": TOO_LARGE}))
    assert [label for label, _, _ in draw.bars_of(str(file))] == ["resnext50_32x4d\nauto, v5e:2x4"]


def test_the_picture(command, tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps(REPORT))
    command("a.json", "--out=a.png")
    assert capsys.readouterr().out == "a.png\n"
    image = matplotlib.image.imread(tmp_path / "a.png")[..., :3].reshape(-1, 3)
    assert len({tuple(color) for color in image[::7].round(2)}) > 2  # not an empty page


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("cycles: 3", "is no report"),
        ('{"train": {}}', "analysis.aot"),
        (json.dumps(REPORT | TOO_LARGE), "nothing to draw"),
    ],
)
def test_mistakes(command, tmp_path, capsys, text, words):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(SystemExit) as exit_:
        command("a.json")
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("out", "words"), [("absent/a.png", "No such file"), ("a.word", "not supported")])
def test_a_picture_that_cannot_be_written(command, tmp_path, capsys, out, words):
    (tmp_path / "a.json").write_text(json.dumps(REPORT))
    with pytest.raises(SystemExit) as exit_:
        command("a.json", f"--out={out}")
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: --out={out} cannot be written")
    assert words in printed.err
    assert printed.out == ""
