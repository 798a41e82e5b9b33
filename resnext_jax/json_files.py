"""Read JSON that may be damaged or hostile. All of the package's JSON is read here, and its types are checked."""

import collections
import json
import os
from typing import Any

from etils import epath

from resnext_jax.errors import UserError

MAX_JSON_BYTES, MAX_JSON_DEPTH = 1 << 28, 64
MAX_SHOWN = 60  # characters of a wrong value in a message
WHOLE = range(2**63)  # form of a size, a count or a step


def read_json(path: epath.Path, form: Any, advice: str) -> Any:
    """Return the value of a JSON file that may be damaged or hostile.

    Args:
      form: what the value must look like; see `check_form`.
      advice: what to do if the file cannot be used.

    Raises:
      UserError: the file cannot be read, or `parse_json` refuses its content.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}. {advice}") from error
    try:
        return parse_json(content, form)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). {advice}") from error


def parse_json(content: bytes, form: Any) -> Any:
    """Return the value of JSON text that may be damaged or hostile.

    Raises:
      ValueError: it is no JSON in UTF-8, too large, nested too deeply, has a name twice, or is of another form.
    """
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_BYTES:,} bytes")
    try:
        value = _DECODER.decode(content.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if content.count(b"[") + content.count(b"{") > MAX_JSON_DEPTH:
        _check_depth(value)
    check_form(value, form)
    return value


def check_form(value: Any, form: Any, place: str = "") -> None:
    """Checks the types in a JSON value.

    Args:
      form: `str`, `bool`, `dict`, `list`; `float` for any number; `None`; a `range` of whole numbers; a tuple of these,
        one of which it must have; `[form]` for a list of one form; `{"a": form, "b?": form}` for an object with the
        name "a" and perhaps "b", and with `str: form` for one whose other names have that form.
      place: where the value is in its file.

    Raises:
      ValueError: it is of another form; the first wrong place is named.
    """
    if _has_form(value, form):
        return
    if isinstance(form, dict) and isinstance(value, dict):
        for name, part in form.items():
            if name is str:
                for key in value.keys() - form.keys():
                    check_form(value[key], part, f"{place}.{key[:MAX_SHOWN]}".lstrip("."))
            elif (key := name.removesuffix("?")) in value:
                check_form(value[key], part, f"{place}.{key}".lstrip("."))
            elif key == name:
                raise ValueError(f"{f'{place}.{key}'.lstrip('.')} is missing")
    elif isinstance(form, list) and isinstance(value, list):
        for index, part in enumerate(value):
            if not _has_form(part, form[0]):
                check_form(part, form[0], f"{place}[{index}]")
    else:
        raise ValueError(f"{place or 'it'} is {shown(value)}, not {_words(form)}")


def is_file_name(name: str) -> bool:
    """Return whether a name is that of a file in a directory itself, and not a path that leads elsewhere."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def shown(value: Any) -> str:
    """Return the beginning of a value for a message."""
    text = repr(value[:MAX_SHOWN] if isinstance(value, str | list) else value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _has_form(value: Any, form: Any) -> bool:
    """Return whether a value has a form without others inside; false for a form with others."""
    if isinstance(form, range):
        return type(value) is int and value in form
    if isinstance(form, tuple):
        return any(_has_form(value, one) for one in form)
    return type(value) in (int, float) if form is float else value is None if form is None else type(value) is form


def _words(form: Any) -> str:
    if isinstance(form, range):
        return f"a whole number in [{form.start:,}, {form.stop:,})"
    if isinstance(form, tuple):
        return " or ".join(map(_words, form))
    words = {str: "text", bool: "true or false", dict: "an object", list: "a list", float: "a number"}
    return "null" if form is None else words[form if isinstance(form, type) else type(form)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {shown(twice)} stands twice in one object")
    return found


def _check_depth(value: Any) -> None:
    """Refuses a deep value: whoever walks through it later may do so recursively."""
    level, depth = [value], 0
    while level:
        if (depth := depth + 1) > MAX_JSON_DEPTH:
            raise ValueError(_TOO_DEEP)
        inner = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [part for parts in inner for part in parts]


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_TOO_DEEP = f"more than {MAX_JSON_DEPTH} lists or objects lie within one another"
