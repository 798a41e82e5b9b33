"""The command line: `python -m resnext_jax.detection.prepare coco|voc ...`.

`coco` writes the images as sharded ArrayRecord for pods, with the annotations beside them; `voc` converts annotations.
"""

import argparse
import hashlib
import json
import os
import sys

from etils import epath

from resnext_jax.data.absent import bucket_problems
from resnext_jax.data.folder import SPLITS
from resnext_jax.data.prepare.command import exit_status
from resnext_jax.data.prepare.directory import require_ours, write_file
from resnext_jax.data.prepare.images import LOOSE, Images
from resnext_jax.data.prepare.job import Job, prepare
from resnext_jax.data.prepare.pool import worker_pool
from resnext_jax.data.records import OBJECTS
from resnext_jax.detection import voc
from resnext_jax.detection.results import to_coco
from resnext_jax.detection.sources import LAYOUTS, FileImages, annotations_file, open_source, require_apart
from resnext_jax.errors import UserError, raise_all

IMAGES_PER_SHARD = 700  # some 110 MB at COCO's size
MAX_PROCESSES = 32


def flags() -> argparse.ArgumentParser:
    """Return the parser of the commands and their flags."""
    parser = argparse.ArgumentParser(
        prog="python -m resnext_jax.detection.prepare", description="Data sets for detection, made ready for training."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{coco,voc}")
    coco = commands.add_parser(
        "coco",
        help="images and boxes in COCO's format -> sharded ArrayRecord, for pods",
        description="After an interruption run the same command again: finished shards stay.",
    )
    coco.add_argument("--dir", required=True, help="with annotations/ and the folders of the images")
    coco.add_argument("--out", required=True, help="the directory to write; gs:// too")
    coco.add_argument("--on_bad_image", choices=("error", "skip"), default="error", help="for images that are broken")
    coco.add_argument("--images_per_shard", type=int, default=IMAGES_PER_SHARD, help="at least; at most 1024 shards")
    processes = min(os.cpu_count() or 1, MAX_PROCESSES)
    coco.add_argument("--num_processes", type=int, default=processes, help="default: %(default)s")
    xml = commands.add_parser("voc", help="boxes in VOC's XML -> DIR/annotations/train.json and validation.json")
    xml.add_argument("--dir", required=True, help="such as VOCdevkit")
    example = "VOC2007/trainval for VOC2007/ImageSets/Main/trainval.txt, or a folder of XML files"
    xml.add_argument("--train", nargs="+", default=[], metavar="SET", help=example)
    xml.add_argument("--validation", nargs="+", default=[], metavar="SET", help="as --train")
    return parser


def write_records(
    directory: str, out: str, *, images_per_shard: int, num_processes: int, skip_bad: bool = False
) -> list[str]:
    """Write the images of a directory in COCO's format as records, with their annotations.

    Returns:
      Lines for the user: what was written, and the notes on the data.

    Raises:
      UserError: the data are not as they should be, or `out` holds something else.
    """
    require_ours(out)
    # Where there is none, opening raises with all places.
    splits = [split for split in SPLITS if _has(directory, split)] or SPLITS[:1]
    found = {split: open_source(directory, split) for split in splits}
    if not all(isinstance(source, FileImages) for source in found.values()):
        raise UserError(f"{directory} is prepared already. Copy it, or prepare the original files.")
    data = {split: source.data for split, source in found.items()}
    first = next(iter(data.values()))
    for split, own in data.items():
        if own.class_names != first.class_names or own.class_ids.tolist() != first.class_ids.tolist():
            raise UserError(f"{directory}: {split} has other classes than {next(iter(data))}. Make them equal.")
    if len(data) == len(SPLITS):
        require_apart(data["train"], data["validation"])
    # Compact, and equal on every run: the directory is known by its digest.
    texts = {split: json.dumps(to_coco(own), separators=(",", ":")) for split, own in data.items()}
    digests = {split: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()}
    images = {
        split: Images.make(directory, own.files, [LOOSE] * len(own), [LOOSE] * len(own), range(len(own)))
        for split, own in data.items()
    }
    job = Job(OBJECTS, first.class_names, images, {"annotations": digests}, images_per_shard, None)
    with worker_pool(num_processes) as pool:
        manifest = prepare(job, out, pool, num_processes, skip_bad=skip_bad)
    if manifest.notes["annotations"] != digests:
        raise UserError(f"{out} holds another preparation (of other boxes). Give another --out, or remove it.")
    for split, text in texts.items():
        write_file(epath.Path(out, annotations_file(split)), text)
    lines = [note for own in data.values() for note in own.notes]
    if lost := manifest.notes["left_out"]:
        lines.append(f"{len(lost):,} images could not be read and were left out: {' '.join(lost[:3])}")
    for split, own in data.items():
        written = manifest.splits[split]
        lines.append(
            f"{split:10}  {written.num_images:>10,} images  {len(own.annotations):>10,} boxes  "
            f"{len(written.shards):>5,} shards"
        )
    return lines


def write_voc(directory: str, sets: dict[str, list[str]]) -> list[str]:
    """Convert sets of VOC's XML and write the annotations; returns what was written, for the user."""
    sets = {split: names for split, names in sets.items() if names}
    if not sets:
        raise UserError("give the sets to convert with --train or --validation, such as --train VOC2007/trainval.")
    lines = []
    for split, content in voc.convert(directory, sets).items():
        path = epath.Path(directory, LAYOUTS["own"][split][0][0])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(content))
        boxes = content["annotations"]
        lines.append(
            f"{path}: {len(content['images']):,} images, {len(content['categories']):,} classes, {len(boxes):,} boxes; "
            f"the {sum(box['iscrowd'] for box in boxes):,} difficult ones became crowds"
        )
    return lines


def _has(directory: str, split: str) -> bool:
    return any(all(epath.Path(directory, path).exists() for path, _ in layout[split]) for layout in LAYOUTS.values())


def _run(arguments: argparse.Namespace) -> None:
    directory = os.path.expanduser(arguments.dir)
    if arguments.command == "voc":
        lines, used = write_voc(directory, {split: getattr(arguments, split) for split in SPLITS}), directory
    else:
        out = os.path.expanduser(arguments.out)
        numbers = {name: getattr(arguments, name) for name in ("images_per_shard", "num_processes")}
        wrong = [f"--{name}={value} must be 1 or more." for name, value in numbers.items() if value < 1]
        raise_all(wrong + bucket_problems(directory, out))
        lines, used = write_records(directory, out, **numbers, skip_bad=arguments.on_bad_image == "skip"), out
    print(*lines, f"\nTrain with --config.data.dir={used}", sep="\n")


def main(argv: list[str]) -> int:
    """Run one command and return the exit status."""
    arguments = flags().parse_args(argv)
    return exit_status(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
