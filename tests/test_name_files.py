"""files.py: every file of names is read alike."""

import pytest

from resnext_jax.errors import UserError
from resnext_jax.files import read_names


@pytest.mark.parametrize(
    "content",
    [
        b"ant\nbee b\ncat",
        b"ant\nbee b\ncat\n",
        b"ant\r\nbee b\r\ncat\r\n",
        b"ant\rbee b\rcat\r",
        b"\xef\xbb\xbfant\nbee b\ncat\n\n  \n",
        b"  ant\t\n\nbee b  \n \ncat \n",
    ],
    ids=["plain", "last end", "Windows", "old Mac", "byte-order mark, blank end", "blanks"],
)
def test_names_do_not_depend_on_how_the_file_was_saved(tmp_path, content):
    (tmp_path / "names").write_bytes(content)
    assert read_names(tmp_path / "names") == ["ant", "bee b", "cat"]


def test_only_line_ends_separate_names(tmp_path):
    (tmp_path / "names").write_text("a\x0bb\nc\x85d\u2028e\n", encoding="utf-8")
    assert read_names(tmp_path / "names") == ["a\x0bb", "c\x85d\u2028e"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b"", "no name"),
        (b"\xef\xbb\xbf \n", "no name"),
        ("ant\nbee\n".encode("utf-16"), "UTF-8"),
        ("ant\nbee\n".encode("utf-16-le"), "UTF-16"),
        (b"caf\xe9\n", "UTF-8"),
        (b"x" * 64_000_001, "64,000,000 bytes"),
    ],
    ids=["absent", "empty", "blank", "UTF-16", "UTF-16 without a mark", "Latin-1", "large"],
)
def test_a_file_without_names_is_refused(tmp_path, content, problem):
    if content is not None:
        (tmp_path / "names").write_bytes(content)
    with pytest.raises(UserError, match=rf"{tmp_path}/names.*{problem}.*one name per line"):
        read_names(tmp_path / "names")
    with pytest.raises(UserError, match="Is a directory"):
        read_names(tmp_path)
