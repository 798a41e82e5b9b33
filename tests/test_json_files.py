"""JSON of others: what is refused, and that nothing but ValueError or UserError is raised."""

import json
import time

import pytest
from etils import epath

from resnext_jax.errors import UserError
from resnext_jax.json_files import MAX_JSON_DEPTH, WHOLE, parse_json, read_json

FORM = {"name": str, "sizes": [WHOLE], "flag?": bool, "rate?": (float, None), "by_name?": {str: [float]}}


def nested(depth):
    return (depth * '{"a":[' + depth * "]}").encode()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "utf-8"),
        (b'{"name": "x", "sizes": []} x', "Extra data"),
        (b"[1]", r"it is \[1\], not an object"),
        (b'{"name": "x"}', "sizes is missing"),
        (b'{"name": 3, "sizes": []}', "name is 3, not text"),
        (b'{"name": "x", "sizes": {}}', "sizes is {}, not a list"),
        (b'{"name": "x", "sizes": [1, "2"]}', r"sizes\[1\] is '2', not a whole number"),
        (b'{"name": "x", "sizes": [true]}', r"sizes\[0\] is True"),
        (b'{"name": "x", "sizes": [1.0]}', r"sizes\[0\] is 1.0"),
        (b'{"name": "x", "sizes": [-1]}', r"sizes\[0\] is -1"),
        (b'{"name": "x", "sizes": [9223372036854775808]}', r"sizes\[0\] is 9223372036854775808"),
        (b'{"name": "x", "sizes": [1' + 5000 * b"0" + b"]}", "digits"),
        (b'{"name": "x", "sizes": [], "flag": 1}', "flag is 1, not true or false"),
        (b'{"name": "x", "sizes": [], "rate": "0"}', "rate is '0', not a number or null"),
        (b'{"name": "x", "sizes": [], "by_name": {"a": [null]}}', r"by_name.a\[0\] is None, not a number"),
        (b'{"name": "x", "sizes": [], "name": "y"}', "'name' stands twice"),
        (nested(MAX_JSON_DEPTH), "lie within one another"),
        (nested(500_000), "lie within one another"),
    ],
)
def test_json_of_another_form_is_refused(content, problem):
    with pytest.raises(ValueError, match=problem):
        parse_json(content, FORM)


def test_json_of_the_form_comes_back():
    value = {"name": "zw\u00f6lf", "sizes": [0, 2**63 - 1], "rate": None, "by_name": {"a": [1, 0.5]}, "more": [[]]}
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode(), FORM) == value


@pytest.mark.slow
def test_many_names_are_parsed_in_seconds():
    began_s = time.monotonic()
    names = [f"n{number}" for number in range(100_000)]
    parse_json(json.dumps({"names": names, **dict.fromkeys(names, 1)}).encode(), {"names": [str]})
    with pytest.raises(ValueError, match="stands twice"):
        parse_json(("{" + ",".join(f'"{name}": 1' for name in [*names, "n99999"]) + "}").encode(), dict)
    assert time.monotonic() - began_s < 20


def test_a_file_is_named_with_the_advice(tmp_path):
    path = epath.Path(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"x\.json cannot be read: No such file.*Copy it again"):
        read_json(path, dict, "Copy it again.")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(epath.Path(tmp_path), dict, "Copy it again.")
    path.write_text("{")
    with pytest.raises(UserError, match=r"x\.json is damaged \(Expecting.*\)\. Copy it again"):
        read_json(path, dict, "Copy it again.")
