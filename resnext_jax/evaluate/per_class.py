"""The answers for all images, counted by class: accuracies and the confusion matrix."""

import dataclasses

import numpy as np
from jaxtyping import Int

from resnext_jax import metrics
from resnext_jax.evaluate.answers import NUM_TOP, Answers


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """The counts of one class.

    Attributes:
      label: label of the network.
      images: images of which this class is a right answer.
      right, top5: images of these whose most probable class, or one of the first five, is right.
      answers: images for which this class is the most probable one.
      right_answers: images of these of which it is right.
      taken_for: most frequent wrong answer for images of this class, and how often; None without a mistake.
    """

    label: int
    images: int
    right: int
    top5: int
    answers: int
    right_answers: int
    taken_for: tuple[int, int] | None

    @property
    def accuracy(self) -> float | None:
        """Share of its images that are right (recall); None without images."""
        return self.right / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """Share of its answers that are right; None without answers."""
        return self.right_answers / self.answers if self.answers else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the accuracy."""
        return metrics.interval(self.right, self.images) if self.images else None


def class_rows(answers: Answers) -> list[ClassRow]:
    """Return the counts of every class that an image has or that was answered, in label order.

    An image with several right labels counts for each of them; one without any is left out.
    """
    counted = np.flatnonzero(answers.counted)
    of_class: dict[int, list[int]] = {}
    for image in counted.tolist():
        for label in answers.right[image]:
            of_class.setdefault(label, []).append(image)
    answered = answers.top[:, 0]
    labels = sorted({*of_class, *np.unique(answered[counted]).tolist()})
    times = np.bincount(answered[counted], minlength=labels[-1] + 1)
    times_right = np.bincount(answered[counted][answers.rank[counted] == 1], minlength=labels[-1] + 1)
    rows = []
    for label in labels:
        images = np.array(of_class.get(label, []), np.int64)
        rank = answers.rank[images]
        wrong = np.bincount(answered[images][rank > 1])
        rows.append(
            ClassRow(
                label=label,
                images=len(images),
                right=int((rank == 1).sum()),
                top5=int((rank <= NUM_TOP).sum()),
                answers=int(times[label]),
                right_answers=int(times_right[label]),
                taken_for=(int(wrong.argmax()), int(wrong.max())) if wrong.size else None,
            )
        )
    return rows


def worst(rows: list[ClassRow], count: int) -> list[ClassRow]:
    """Return the classes of lowest accuracy that have a mistake, the worst first; of equal ones the larger first."""
    wrong = [row for row in rows if row.right < row.images]
    return sorted(wrong, key=lambda row: (row.right / row.images, -row.images, row.label))[:count]


def confusion(answers: Answers) -> tuple[list[int], Int[np.ndarray, "classes classes"]]:
    """Return the labels that occur, ascending, and how many images of each (row) were answered with each (column).

    Every image has one right label here.
    """
    right = np.array([labels[0] for labels in answers.right])
    labels, places = np.unique(np.concatenate([right, answers.top[:, 0]]), return_inverse=True)
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(matrix, (places[: len(right)], places[len(right) :]), 1)
    return labels.tolist(), matrix


def most_confused(matrix: Int[np.ndarray, "classes classes"], count: int) -> list[int]:
    """Return the places of up to `count` classes, ascending: those in the most frequent confusions."""
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    places = np.flatnonzero(mistakes)
    chosen: set[int] = set()
    for place in places[np.argsort(-mistakes.flat[places], kind="stable")].tolist():
        pair = set(divmod(place, len(matrix)))
        if len(chosen | pair) > count:
            break
        chosen |= pair
    return sorted(chosen)
