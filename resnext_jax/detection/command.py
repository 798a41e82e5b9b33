"""The modes of `main.py` for a detector: evaluate and predict."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from resnext_jax import sharding
from resnext_jax.builders import require_same_on_all_hosts
from resnext_jax.checkpoint import DIRECTORY, locate, read_description, read_variables
from resnext_jax.data.decode import read_image
from resnext_jax.detection import evaluation
from resnext_jax.detection.checks import evaluation_problems
from resnext_jax.detection.net import DetectionNet, require_whole
from resnext_jax.detection.results import write_results
from resnext_jax.detection.sources import open_source
from resnext_jax.detection.task import AP_METRICS, RESULTS_FILE, Detection
from resnext_jax.errors import UserError, raise_all
from resnext_jax.sharding import Place


def evaluate_detector(workdir: str, place: Place, prepare: Callable[[ConfigDict], None], *, as_json: bool) -> None:
    """Print COCO's numbers of a checkpoint on the validation images, and write its detections beside it.

    Args:
      workdir: see `checkpoint.locate`.
      prepare: applies the overrides of the command line to the checkpoint's config.
    """
    checkpoint = locate(workdir)
    description = read_description(checkpoint)
    config = ConfigDict(description["config"])
    require_whole(config, str(checkpoint))
    prepare(config)
    raise_all(evaluation_problems(config, place.mesh.size))
    source = open_source(config.data.dir, "validation")
    known = tuple(description["dataset"]["class_names"])
    if source.data.class_names != known:
        raise UserError(
            f"{checkpoint} knows the {len(known)} classes {', '.join(known[:5])}, ..., and {config.data.dir} has "
            f"{len(source.data.class_names)}: {', '.join(source.data.class_names[:5])}, .... Evaluate on data with the "
            "same categories."
        )
    require_same_on_all_hosts(place, validation=source)
    task = Detection(config, place, source.info, validation=source)
    variables = read_variables(checkpoint, sharding.replicated(place.mesh))
    found = evaluation.find_all(task.evaluation_step, variables, source, config, place, "evaluate")
    row = evaluation.score_detections(source, found, config)
    if not place.is_primary:
        return
    in_workdir = checkpoint.parent.name == DIRECTORY
    path = (checkpoint.parent.parent if in_workdir else checkpoint.parent) / RESULTS_FILE
    write_results(path, source.data, found)
    print(f"{checkpoint} on {len(source):,} images of {config.data.dir}:")
    print("  ".join(metric.show(row[metric.name]) for metric in AP_METRICS))
    print(f"{len(found):,} detections in COCO's format: {path}")
    if as_json:
        print(json.dumps({"checkpoint": str(checkpoint), "images": len(source), "results": str(path), **row}))


def predict_objects(net: DetectionNet, paths: Sequence[str], *, draw_dir: str | None, as_json: bool) -> None:
    """Print the objects in every image, and write pictures with their boxes to `draw_dir` if it is given.

    Raises:
      UserError: an image that cannot be read, with all others, or pictures that cannot be written.
    """
    images, problems = [read_image(path) for path in paths], []
    targets = [Path(os.path.expanduser(draw_dir)) / f"{Path(path).stem}.png" for path in paths] if draw_dir else []
    doubled = {str(target) for target in targets if targets.count(target) > 1}
    problems += [
        f"--draw would write {name} twice: draw images of one name one after the other." for name in sorted(doubled)
    ]
    problems += [
        f"{target} is there already: give another directory with --draw=DIR." for target in targets if target.exists()
    ]
    raise_all(problems)
    results = []
    for number, (path, image) in enumerate(zip(paths, images, strict=True)):
        [objects] = net.detect(image)
        results.append({"image": path, "objects": objects})
        print(f"{path}: {len(objects)} object{'s' if len(objects) != 1 else ''}")
        for found in objects:
            x, y, width, height = found["box"]
            print(f"  {found['score']:7.2%}  {found['class']}  x {x:.0f}  y {y:.0f}  {width:.0f} x {height:.0f} px")
        if targets:
            _save(net.draw(image, objects), targets[number])
    if as_json:
        print(json.dumps({"images": results}))


def _save(picture: np.ndarray, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}. Give another --draw=DIR.") from None
