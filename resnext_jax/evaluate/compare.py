"""Compare two reports of the same images: `python -m resnext_jax.evaluate.compare DIR DIR [--json]`.

McNemar's test asks whether one network is better or chance made it look so. It counts the images that only one of the
two has right: if both were equally good, each of these would be a toss of a coin. The test is exact (binomial) and
two-sided. Source: McNemar 1947; Dietterich 1998, "Approximate statistical tests for comparing supervised
classification learning algorithms", section 3.1.
"""

import argparse
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from resnext_jax.data.absent import bucket_problems
from resnext_jax.errors import UserError, raise_all, user_errors_reported
from resnext_jax.evaluate.report import FORMAT, PREDICTIONS, SUMMARY
from resnext_jax.json_files import parse_json

LEVEL = 0.05
NUM_CLASSES = 5
# Fields of a summary that may differ between two reports without a note.
OWN = ("checkpoint", "loss", "top1", "top5", "worst_classes", "files", "left_out")


class Image(NamedTuple):
    """One image of a report: its path below the directory that all share, its right classes, and if it was right."""

    name: str
    right: str
    is_right: bool


def read_report(directory: str) -> tuple[dict[str, Any], list[Image]]:
    """Return the summary of a report, and the images that have a right class, sorted by name.

    Raises:
      UserError: it is not there, not complete, or damaged.
    """
    raise_all(bucket_problems(directory))
    root = epath.Path(directory).expanduser()
    advice = "Give the directory of a complete report: python main.py --mode=evaluate --report=DIR"
    try:
        summary = parse_json((root / SUMMARY).read_bytes(), dict)
        if summary["format"] != FORMAT:
            raise UserError(f"{root} is of the format {summary['format']!r}; this version reads {FORMAT!r}. {advice}")
        text = (root / PREDICTIONS).read_bytes().decode("utf-8", "surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        images = [Image(row["image"], row["right"], int(row["rank"]) == 1) for row in rows if row["right"]]
        if len(images) != summary["images"] or not images:
            raise ValueError(f"{PREDICTIONS} has {len(images):,} images, and {SUMMARY} {summary['images']:,}")
        summary |= {"checkpoint": str(summary["checkpoint"]), "top1": float(summary["top1"])}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or repr(error)
        raise UserError(f"{root} is no report that can be read: {reason}. {advice}") from None
    folders = _common_folders([image.name for image in images])
    images = [image._replace(name="/".join(image.name.split("/")[folders:])) for image in images]
    return summary, sorted(images, key=lambda image: image.name)


def _common_folders(names: Sequence[str]) -> int:
    """Return in how many folders all of these paths lie: two machines keep their images in different places."""
    first, last = (name.split("/")[:-1] for name in (min(names), max(names)))
    same = [one == other for one, other in zip(first, last, strict=False)]
    return same.index(False) if False in same else len(same)


def compare(first: str, second: str) -> dict[str, Any]:
    """Return how often both, one or none of two reports is right, and the p-value.

    Raises:
      UserError: they are not of the same images with the same right classes.
    """
    from scipy.stats import binomtest  # slow to import

    (one, left), (other, right) = read_report(first), read_report(second)
    pairs = list(zip(left, right, strict=False))
    differ = next((mine for mine, theirs in pairs if mine[:2] != theirs[:2]), None)
    if len(left) != len(right) or differ is not None:
        where = f"; the first that differs: {differ.name}" if differ else ""
        raise UserError(
            f"{first} is of {len(left):,} images, and {second} of {len(right):,}{where}. Reports that are compared "
            "must be of the same images with the same right classes: evaluate both checkpoints on the same data."
        )
    counts = Counter((mine.is_right, theirs.is_right) for mine, theirs in pairs)
    only_first, only_second, images = counts[True, False], counts[False, True], len(pairs)
    unlike = only_first + only_second
    difference = (only_second - only_first) / images
    # Of a difference of paired shares, by the normal approximation.
    half = 1.959964 * (unlike - (only_second - only_first) ** 2 / images) ** 0.5 / images
    gain: Counter[str] = Counter()
    for mine, theirs in pairs:
        gain[mine.right] += theirs.is_right - mine.is_right
    changed = sorted((name for name in gain if gain[name]), key=lambda name: (-abs(gain[name]), name))
    return {
        "first": {"report": first, "checkpoint": one["checkpoint"], "top1": one["top1"]},
        "second": {"report": second, "checkpoint": other["checkpoint"], "top1": other["top1"]},
        "images": images,
        "both_right": counts[True, True],
        "only_first_right": only_first,
        "only_second_right": only_second,
        "both_wrong": counts[False, False],
        "difference": difference,
        "difference_low": difference - half,
        "difference_high": difference + half,
        "p_value": float(binomtest(only_second, unlike).pvalue) if unlike else 1.0,
        "classes": {name: gain[name] for name in changed[:NUM_CLASSES]},
        "conditions": {
            name: [one.get(name), other.get(name)]
            for name in {**one, **other}
            if name not in OWN and not name.endswith(("_low", "_high")) and one.get(name) != other.get(name)
        },
    }


def in_words(found: dict[str, Any]) -> str:
    """Return the result of `compare` for people."""
    lines = [
        f"{place:7} {of['top1']:7.2%} top-1  {of['report']} ({of['checkpoint']})"
        for place, of in (("first", found["first"]), ("second", found["second"]))
    ]
    lines += [f"other {name}: {values[0]}, and {values[1]}" for name, values in found["conditions"].items()]
    lines += [
        f"{found['images']:,} images: both right {found['both_right']:,}, only the first "
        f"{found['only_first_right']:,}, only the second {found['only_second_right']:,}, both wrong "
        f"{found['both_wrong']:,}",
        f"second - first: {100 * found['difference']:+.2f} points (95 %: {100 * found['difference_low']:+.2f} to "
        f"{100 * found['difference_high']:+.2f})",
    ]
    if found["p_value"] < LEVEL:
        better = "second" if found["difference"] > 0 else "first"
        verdict = f"the {better} is better; chance alone would seldom make such a difference (p < {LEVEL})"
    else:
        verdict = f"chance alone can make such a difference (p >= {LEVEL}): these images do not tell which is better"
    lines.append(f"McNemar's exact test: p = {found['p_value']:.3g}: {verdict}")
    if found["classes"]:
        listed = ", ".join(f"{name} {count:+}" for name, count in found["classes"].items())
        lines.append(f"classes that changed most, in images the second has right: {listed}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m resnext_jax.evaluate.compare",
        description="Which of two networks is better on the same images, and whether it could be chance (McNemar).",
    )
    parser.add_argument("first", metavar="DIR", help="a report of main.py --mode=evaluate --report=DIR")
    parser.add_argument("second", metavar="DIR", help="another one, of the same images")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args(argv)
    with user_errors_reported():
        found = compare(arguments.first, arguments.second)
        print(in_words(found))
        if arguments.json:
            print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
