"""The report of an evaluation: what a network gets wrong, as CSV files and pictures in a new directory."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from resnext_jax.data.absent import bucket_problems
from resnext_jax.data.crops import pixels
from resnext_jax.data.imagenet_classes import readable
from resnext_jax.errors import UserError, raise_all
from resnext_jax.evaluate.answers import Answers, Recorder
from resnext_jax.evaluate.loaded import LoadedCheckpoint
from resnext_jax.evaluate.per_class import ClassRow, class_rows, confusion, worst
from resnext_jax.evaluate.pictures import Tile, draw_confusion, draw_sheet
from resnext_jax.files import in_bucket, replace_file
from resnext_jax.sharding import Place, raise_if_any

FORMAT = "resnext_jax report 1"
SUMMARY, PREDICTIONS, PER_CLASS = "summary.json", "predictions.csv", "per_class.csv"
CONFUSION, CONFUSION_PICTURE, MISTAKES = "confusion.csv", "confusion.png", "mistakes.png"
NUM_WORST, NUM_MISTAKES = 10, 40
BETWEEN = " | "  # several right labels
NO_MATRIX = "with ReaL labels an image can have several right classes, which a confusion matrix cannot show"


def print_row(
    loaded: LoadedCheckpoint,
    checkpoint: epath.Path,
    row: dict[str, float],
    summary: dict[str, Any] | None = None,
    *,
    report_dir: str = "",
    as_json: bool,
) -> None:
    """Print the results of a checkpoint on the primary process.

    Args:
      row: loss and accuracies by name.
      summary: summary of the report in `report_dir`, if one was written.
      as_json: whether the last line repeats all of it as JSON.
    """
    if not loaded.place.is_primary:
        return
    print(f"{checkpoint} on {row['images']:,} images of {loaded.in_words()}:")
    accuracies = (
        f"{name[:-1]}-{name[-1]} {row[name]:.2%} (95 %: {row[f'{name}_low']:.2%} to {row[f'{name}_high']:.2%})"
        for name in ("top1", "top5")
    )
    print(f"loss {row['loss']:.4f}  " + "  ".join(accuracies))
    if summary:
        print(in_words(summary, report_dir))
    if as_json:
        report = {"report": report_dir, "worst_classes": summary["worst_classes"]} if summary else {}
        print(json.dumps({"checkpoint": str(checkpoint), **loaded.conditions(), **row, **report}))


def new_directory(path: str) -> epath.Path:
    """Return the directory of a report, made if it is not there.

    Raises:
      UserError: there is something in it, or it cannot be written.
    """
    raise_all(bucket_problems(path))
    directory = epath.Path(path).expanduser()
    advice = "Give another --report=DIR: a new one, or an empty one."
    try:
        if directory.exists():
            if not directory.is_dir():
                raise UserError(f"{directory} is a file. {advice}")
            if any(directory.iterdir()):
                kind = "holds a report" if (directory / SUMMARY).exists() else "holds files"
                raise UserError(f"{directory} {kind} already, and nothing is overwritten. {advice}")
        directory.mkdir(parents=True, exist_ok=True)
        if not in_bucket(directory) and not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(0, "Permission denied")
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror or error}). {advice}") from None
    return directory


def evaluate_with_report(loaded: LoadedCheckpoint, path: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Evaluate a checkpoint, write the report of it, and return the results and the summary.

    Args:
      path: directory of the report; only the primary process writes to it.

    Raises:
      UserError: on every process, before the evaluation, if the directory has anything in it or cannot be written.
    """
    directory = _on_primary(loaded.place, lambda: new_directory(path))
    recorder = Recorder()
    row = loaded.evaluate(loaded.variables, recorder)
    answers = recorder.answers(loaded.place)
    summary = _on_primary(loaded.place, lambda: write_report(directory, loaded, row, answers))
    return row, summary or {}


def _on_primary(place: Place, function: Any) -> Any:
    """What a function returns on the primary process, None on others. All raise if it raises a `UserError`."""
    result = own = None
    try:
        result = function() if place.is_primary else None
    except UserError as error:
        own = error
    raise_if_any(place, own)
    return result


def write_report(
    directory: epath.Path, loaded: LoadedCheckpoint, row: dict[str, float], answers: Answers
) -> dict[str, Any]:
    """Write the files of a report, the summary last, and return the summary.

    Raises:
      UserError: one could not be written.
    """
    names = readable(loaded.description["dataset"]["class_names"])
    rows = class_rows(answers)
    run = "/".join(loaded.checkpoint.parts[-3:])  # the whole path is too long for a picture
    title = f"{run} on {row['images']:,} images of {loaded.in_words()}: top-1 {row['top1']:.2%}"
    files: dict[str, bytes | str] = {
        PREDICTIONS: predictions_csv(answers, names),
        PER_CLASS: per_class_csv(rows, names),
    }
    left_out = {}
    if loaded.classes.accepted is None:
        labels, matrix = confusion(answers)
        of_labels = [names[label] for label in labels]
        files[CONFUSION] = csv_text(
            ["right class", *of_labels],
            ([name, *counts] for name, counts in zip(of_labels, matrix.tolist(), strict=True)),
        )
        files[CONFUSION_PICTURE] = draw_confusion(matrix, of_labels, title)
    else:
        left_out |= dict.fromkeys((CONFUSION, CONFUSION_PICTURE), NO_MATRIX)
    mistakes = worst_mistakes(answers)
    if mistakes:
        files[MISTAKES] = draw_sheet([tile(loaded, answers, names, image) for image in mistakes], title)
    else:
        left_out[MISTAKES] = "there is no mistake"
    summary = {
        "format": FORMAT,
        "checkpoint": str(loaded.checkpoint),
        **loaded.conditions(),
        **row,
        "worst_classes": [_in_summary(one, names) for one in worst(rows, NUM_WORST)],
        "files": [*files, SUMMARY],
        "left_out": left_out,
    }
    try:
        for name, content in [*files.items(), (SUMMARY, json.dumps(summary, indent=1) + "\n")]:
            replace_file(directory / name, content)
    except OSError as error:
        raise UserError(
            f"{directory / name} could not be written ({error.strerror or error}): the report is not complete. Free "
            "space, remove what is in the directory, and run the same command again."
        ) from None
    return summary


def _in_summary(row: ClassRow, names: Sequence[str]) -> dict[str, Any]:
    taken_for, times = row.taken_for or (None, 0)
    return {
        "class": names[row.label],
        "images": row.images,
        "accuracy": row.accuracy,
        "taken_for": None if taken_for is None else names[taken_for],
        "times": times,
    }


def worst_mistakes(answers: Answers) -> list[int]:
    """Return the images with the most probable wrong answers, the most probable first."""
    wrong = np.flatnonzero(answers.counted & (answers.rank > 1) & np.isfinite(answers.top_probability[:, 0]))
    return wrong[np.argsort(-answers.top_probability[wrong, 0], kind="stable")][:NUM_MISTAKES].tolist()


def tile(loaded: LoadedCheckpoint, answers: Answers, names: Sequence[str], image: int) -> Tile:
    """Return the whole image, with its answer and its right class below it."""
    source = loaded.source
    record = source[answers.indices[image]]
    right = " or ".join(names[label] for label in answers.right[image])
    lines = (
        f"answer {answers.top_probability[image, 0]:.1%} {names[answers.top[image, 0]]}",
        f"right {answers.probability[image]:.1%} {right}",
        f"image {answers.indices[image]}",
    )
    return Tile(pixels(record, source.info.num_channels), lines)


def predictions_csv(answers: Answers, names: Sequence[str]) -> str:
    """Return the text of the table of all images: the right classes, their rank, and the most probable ones."""
    header = ["index", "image", "right", "rank", "probability", *top_columns(answers.top.shape[1])]

    def lines() -> Iterable[list[Any]]:
        for place, index in enumerate(answers.indices):
            right = BETWEEN.join(names[label] for label in answers.right[place])
            rank = [int(answers.rank[place]), number(answers.probability[place])] if right else ["", ""]
            top = zip(answers.top[place].tolist(), answers.top_probability[place], strict=True)
            yield [
                *(index, answers.names[place], right, *rank),
                *(field for label, probability in top for field in (names[label], number(probability))),
            ]

    return csv_text(header, lines())


def top_columns(count: int) -> list[str]:
    """Return the names of the columns for so many classes."""
    return [f"{name}{place}" for place in range(1, count + 1) for name in ("class", "probability")]


def number(value: Any) -> str:
    """Return a probability with six significant digits."""
    return f"{float(value):.6g}"


def per_class_csv(rows: Sequence[ClassRow], names: Sequence[str]) -> str:
    """Return the text of the table of classes, in label order; a share of nothing is empty."""
    header = ["label", "class", "images", "right", "accuracy", "accuracy_low", "accuracy_high", "top5"]
    header += ["answers", "precision", "taken_for", "times"]

    def share(value: float | None) -> str:
        return "" if value is None else number(value)

    def line(row: ClassRow) -> list[Any]:
        low, high = row.interval or (None, None)
        top5 = row.top5 / row.images if row.images else None
        taken_for = [names[row.taken_for[0]], row.taken_for[1]] if row.taken_for else ["", ""]
        counts = [row.label, names[row.label], row.images, row.right]
        return [*counts, *map(share, (row.accuracy, low, high, top5)), row.answers, share(row.precision), *taken_for]

    return csv_text(header, map(line, rows))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a CSV text; names with commas, quotes and line breaks are quoted."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()


def in_words(summary: Mapping[str, Any], directory: str) -> str:
    """Return the worst classes and the files of a report, for people."""
    lines = []
    for place, one in enumerate(summary["worst_classes"]):
        most = f" ({one['times']} taken for {one['taken_for']})" if one["taken_for"] else ""
        start = "worst classes" if place == 0 else ""
        lines.append(f"{start:13}  {one['accuracy']:7.2%} of {one['images']:,} right  {one['class']}{most}")
    lines.append(f"{'report':13}  {directory}: {', '.join(summary['files'])}")
    lines += [f"{'left out':13}  {file}: {reason}" for file, reason in summary["left_out"].items()]
    return "\n".join(lines)
