"""What `--mode=predict` is given: files, folders and patterns; and its table."""

import csv

import pytest

from resnext_jax.errors import UserError
from resnext_jax.evaluate.predict import Prediction, new_file, predict_files, readable_images
from tests.data.archives import jpeg


@pytest.fixture
def photos(tmp_path):
    """Two images, one in a sub-folder, one hidden, and three other files; names with brackets are no patterns."""
    for name in ("a[1].jpg", "sub/b.JPEG", ".hidden.jpg", ".git/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(len(name)))
    for name in ("notes.txt", "sub/more.TXT", "Makefile"):
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([""], ["a[1].jpg", "sub/b.JPEG"]),
        (["a[1].jpg", "", "sub"], ["a[1].jpg", "sub/b.JPEG"]),
        (["sub/b.JPEG", "*.jpg"], ["sub/b.JPEG", "a[1].jpg"]),
        (["**/*.JPEG"], ["sub/b.JPEG"]),
        (["s*"], ["sub/b.JPEG"]),
    ],
)
def test_files_folders_and_patterns(photos, arguments, found):
    paths = readable_images([f"{photos}/{argument}" for argument in arguments])
    assert [path.removeprefix(f"{photos}/") for path in paths] == found


def test_what_is_left_out_is_counted(photos, capsys):
    readable_images([str(photos)])
    text = capsys.readouterr().out
    assert "2 images; 5 left out" in text
    assert "Makefile" in text


def test_what_cannot_be_read_is_named_together(photos):
    (photos / "sub" / "c.png").write_bytes(b"GIF?")
    (photos / "empty").mkdir()
    arguments = ["none.jpg", "*.webp", "empty", "sub"]
    with pytest.raises(UserError) as raised:
        readable_images([f"{photos}/{argument}" for argument in arguments])
    words = (
        "*.webp matches no image",
        "empty is a folder without an image",
        "none.jpg could not be read",
        "c.png is not",
    )
    assert len(raised.value.problems) == 4
    assert [word in problem for word, problem in zip(words, raised.value.problems, strict=True)] == [True] * 4


def test_the_table_of_predictions(tmp_path, capsys):
    def predict(paths):
        return [[Prediction('a "cat", say', 0.75), Prediction(path, 0.25)] for path in paths]

    results = predict_files(predict, [f"{i}.jpg" for i in range(40)], new_file(str(tmp_path / "table.csv")))
    assert results[39] == {
        "image": "39.jpg",
        "predictions": [{"class": 'a "cat", say', "probability": 0.75}, {"class": "39.jpg", "probability": 0.25}],
    }
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "class1", "probability1", "class2", "probability2"]
    assert rows[40] == ["39.jpg", 'a "cat", say', "0.75", "39.jpg", "0.25"]
    assert "  25.00%  39.jpg\n40 images: " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"is there already.* another --csv=FILE"):
        new_file(str(tmp_path / "table.csv"))
    with pytest.raises(UserError, match="is no directory that can be"):
        new_file(str(tmp_path / "none" / "table.csv"))
