"""cluster/roll_call.py: every difference is named, with who has what."""

import shutil
from pathlib import Path

import resnext_jax
from resnext_jax.cluster import roll_call

NAMES = ["process 0 (a)", "process 1 (b)", "process 2 (c)", "process 3 (d)"]


def test_alike():
    assert roll_call.differences(NAMES[:2], [{"batch_size": "256"}, {"batch_size": "256"}]) == []


def test_each_difference_has_its_line_with_both_values():
    facts = [
        {"batch_size": "256", "version of jax": "0.10.2"},
        {"batch_size": "512", "version of jax": "0.10.2"},
        {"batch_size": "512", "version of jax": "0.11.0", "new": "1"},
        {"version of jax": "0.10.2"},
    ]
    assert roll_call.differences(NAMES, facts) == [
        "  batch_size: 256 on process 0 (a), but 512 on process 1 (b), process 2 (c)",
        "  batch_size: 256 on process 0 (a), but absent on process 3 (d)",
        "  version of jax: 0.10.2 on process 0 (a), but 0.11.0 on process 2 (c)",
        "  new: absent on process 0 (a), but 1 on process 2 (c)",
    ]


def test_many_are_counted():
    lines = roll_call.differences(NAMES[:2], [{f"f{i}": "0" for i in range(20)}, {f"f{i}": "1" for i in range(20)}])
    assert len(lines) == 13
    assert lines[-1] == "  ... and 8 more differences"
    assert roll_call.several(["a", "b", "c", "d", "e", "f"]) == "a, b, c, d and 2 more"


def test_the_digest_changes_with_a_line_of_source(tmp_path, monkeypatch):
    copy = tmp_path / "resnext_jax"
    shutil.copytree(
        Path(resnext_jax.__file__).parent,
        copy,
        ignore=lambda _, names: {n for n in names if "." in n and n[-3:] != ".py"},
    )
    monkeypatch.setattr(resnext_jax, "__file__", str(copy / "__init__.py"))
    before = roll_call.source_digest()
    assert len(before) == 12
    (copy / "optim.py").write_text((copy / "optim.py").read_text() + "# a comment\n")
    assert roll_call.source_digest() != before
