"""cluster/roll_call.py: every difference is named, with who has what."""

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


def test_the_digest_changes_with_a_line_of_source(tmp_path):
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "pool.py").write_text("x = 1\n")
    before = roll_call.source_digest(tmp_path)
    assert len(before) == 12
    (tmp_path / "notes.txt").write_text("no source")
    assert roll_call.source_digest(tmp_path) == before
    (tmp_path / "ops" / "pool.py").write_text("x = 2\n")
    changed = roll_call.source_digest(tmp_path)
    (tmp_path / "ops" / "pool.py").rename(tmp_path / "pool.py")
    assert len({before, changed, roll_call.source_digest(tmp_path), roll_call.source_digest()}) == 4
