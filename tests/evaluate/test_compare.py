"""Two reports compared: McNemar's exact test by hand, and reports that cannot be compared."""

import json

import pytest

from resnext_jax.errors import UserError
from resnext_jax.evaluate import compare
from resnext_jax.evaluate.report import FORMAT


def write(directory, ranks, *, folder="/data", right="cat", order=1, **fields):
    """A report of images that all are cats, with these ranks."""
    directory.mkdir()
    lines = [f"{place},{folder}/{right}/{place}.png,{right},{rank},0.5\n" for place, rank in enumerate(ranks)]
    (directory / "predictions.csv").write_text("index,image,right,rank,probability\n" + "".join(lines[::order]))
    summary = {
        "format": FORMAT,
        "checkpoint": str(directory),
        "images": len(ranks),
        "top1": ranks.count(1) / len(ranks),
    }
    (directory / "summary.json").write_text(json.dumps(summary | fields))
    return str(directory)


@pytest.mark.parametrize(
    ("first", "second", "p_value", "verdict"),
    [
        # 2 (C(6, 0) + C(6, 1)) / 2^6 and 2 C(6, 0) / 2^6
        ([1, 2, 2, 2, 2, 2, 1, 2], [2, 1, 1, 1, 1, 1, 1, 2], 14 / 64, "chance alone can make"),
        ([2, 2, 2, 2, 2, 2, 1, 2], [1, 1, 1, 1, 1, 1, 1, 2], 2 / 64, "the second is better"),
        ([1, 1, 1, 1, 1, 1, 1, 2], [2, 2, 2, 2, 2, 2, 1, 2], 2 / 64, "the first is better"),
        ([1, 2], [1, 2], 1.0, "chance alone can make"),
        ([1, 2], [2, 1], 1.0, "chance alone can make"),
    ],
)
def test_p_values_by_hand(tmp_path, first, second, p_value, verdict):
    """The folders of the images are others, and so is their order."""
    reports = write(tmp_path / "a", first), write(tmp_path / "b", second, folder="gs://bucket/x", order=-1)
    found = compare.compare(*reports)
    assert found["p_value"] == pytest.approx(p_value)
    pairs = list(zip(first, second, strict=True))
    assert (found["only_first_right"], found["only_second_right"]) == (pairs.count((1, 2)), pairs.count((2, 1)))
    assert (found["both_right"], found["both_wrong"]) == (pairs.count((1, 1)), pairs.count((2, 2)))
    assert found["difference"] == (second.count(1) - first.count(1)) / len(first)
    assert verdict in compare.in_words(found)


def test_the_interval_of_the_difference(tmp_path):
    """Of 100 images 10 and 30: 0.2, and 1.96 sqrt(40 - 20^2 / 100) / 100 to both sides."""
    first, second = [1] * 10 + [2] * 90, [2] * 10 + [1] * 30 + [2] * 60
    found = compare.compare(write(tmp_path / "a", first), write(tmp_path / "b", second, protocol="ten_crop"))
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((0.0824, 0.3176), abs=1e-4)
    assert found["classes"] == {"cat": 20}
    assert found["conditions"] == {"protocol": [None, "ten_crop"]}


def test_the_command_prints_json_last(tmp_path, capsys):
    compare.main([write(tmp_path / "a", [1, 2]), write(tmp_path / "b", [1, 1]), "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["both_right"] == 1
    with pytest.raises(SystemExit) as stopped:
        compare.main([str(tmp_path / "a"), str(tmp_path / "none")])
    assert stopped.value.code == 2


def test_reports_that_cannot_be_compared(tmp_path):
    good = write(tmp_path / "good", [1, 2])
    with pytest.raises(UserError, match=r"of 2 images, and .* of 3.* must be of the same images"):
        compare.compare(good, write(tmp_path / "more", [1, 2, 2]))
    with pytest.raises(UserError, match=r"the first that differs: 0\.png"):
        compare.compare(good, write(tmp_path / "dogs", [1, 2], right="dog"))
    with pytest.raises(UserError, match="is of the format 'x'"):
        compare.compare(good, write(tmp_path / "other", [1], format="x"))
    for damaged in (write(tmp_path / "count", [1, 2], images=5), write(tmp_path / "top1", [1, 2], top1=None)):
        with pytest.raises(UserError, match=r"no report that can be read.* complete report"):
            compare.compare(good, damaged)
    (tmp_path / "good" / "summary.json").unlink()
    with pytest.raises(UserError, match=r"No such file.* complete report"):
        compare.compare(good, good)
