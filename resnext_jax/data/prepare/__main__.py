"""The command line: `python -m resnext_jax.data.prepare imagenet2012|imagenet5k|folder ... --out=DIR`."""

import argparse
import os
import sys
import time
from concurrent.futures import Executor

from etils import epath

from resnext_jax.data.absent import bucket_problems, other_folders
from resnext_jax.data.folder import SPLITS, class_folders, class_problems, split_folders, split_roots
from resnext_jax.data.prepare import imagenet
from resnext_jax.data.prepare.command import exit_status
from resnext_jax.data.prepare.directory import require_ours
from resnext_jax.data.prepare.images import Images, folder_images
from resnext_jax.data.prepare.job import Job, prepare
from resnext_jax.data.prepare.pool import worker_pool
from resnext_jax.data.records import MANIFEST, Manifest, check_files, read_manifest
from resnext_jax.errors import UserError, raise_all, user_errors_reported
from resnext_jax.progress import Progress, duration, say

MAX_PROCESSES = 32  # by default: each takes 0.2 GB, and so many outrun any disk
IMAGES_PER_SHARD = 700  # some 75 MB at ImageNet's size
NEEDS_VALIDATION = (
    "Training evaluates on them: before you train, put images of every class into DIR/validation/<class>/ and prepare "
    "DIR into a new directory."
)


def flags() -> argparse.ArgumentParser:
    """Return the parser of the commands and their flags."""
    parser = argparse.ArgumentParser(
        prog="python -m resnext_jax.data.prepare",
        description="Archives or a folder of images -> sharded ArrayRecord, which training reads by index. After an "
        "interruption run the same command again: finished shards stay.",
    )
    parser.add_argument("--verify", metavar="DIR", help="read every byte of a prepared directory and compare checksums")
    commands = parser.add_subparsers(dest="name", metavar="{imagenet2012,imagenet5k,folder}")
    one_k = commands.add_parser("imagenet2012", help="from ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar")
    five_k = commands.add_parser("imagenet5k", help="the 1000 classes and the 4000 others with the most images")
    folder = commands.add_parser("folder", help="from DIR/train/<class>/* and DIR/validation/<class>/* (or DIR/val)")
    one_k.add_argument("--train_tar", required=True, help="ILSVRC2012_img_train.tar")
    five_k.add_argument("--full", required=True, help="the tar of all class tars, or a folder of class tars")
    five_k.add_argument("--class_list", help="a file with the classes, one per line, instead of counting")
    for command in (one_k, five_k):
        command.add_argument("--val_tar", required=True, help="ILSVRC2012_img_val.tar")
        command.add_argument("--partial", action="store_true", help="for a trial: take archives that are not complete")
    folder.add_argument("--dir", required=True, help="with the class folders")
    processes = min(os.cpu_count() or 1, MAX_PROCESSES)
    for command in (one_k, five_k, folder):
        add = command.add_argument
        add("--out", required=True, help="the directory to write; gs:// too (where no lock keeps a second run out)")
        add("--short_side_px", type=int, help="make larger images this small; see docs/data.md")
        add("--on_bad_image", choices=("error", "skip"), default="error", help="for images that cannot be read")
        add("--images_per_shard", type=int, default=IMAGES_PER_SHARD, help="at least; at most 1024 shards")
        add("--num_processes", type=int, default=processes, help="default: %(default)s")
    return parser


def _problems(arguments: argparse.Namespace) -> list[str]:
    """Return the problems that can be found before the archives are listed, which takes long."""
    problems = [
        f"--{field}={value} must be 1 or more."
        for field in ("short_side_px", "images_per_shard", "num_processes")
        if (value := getattr(arguments, field)) is not None and value < 1
    ]
    problems += [
        f"{path} does not exist. Give the right path with --{field}."
        for field in ("train_tar", "full", "val_tar", "class_list", "dir")
        if (path := getattr(arguments, field, None)) is not None and not epath.Path(path).exists()
    ]
    try:
        require_ours(arguments.out)
    except UserError as error:
        problems += error.problems
    return problems


def make_job(arguments: argparse.Namespace, pool: Executor) -> Job:
    """Lists the images of the archives or the folder; raises UserError if they are not what they should be."""
    name, notes = arguments.name, {}
    if name == "folder":
        class_names, splits = _folder_splits(arguments.dir)
    else:
        val_tar, partial = arguments.val_tar, arguments.partial
        # First, because the training images take long to list.
        validation, _ = imagenet.validation_2012(val_tar, imagenet.imagenet1k_classes(), partial=partial)
        if name == "imagenet2012":
            class_names, train = imagenet.train_2012(arguments.train_tar, pool, partial=partial)
        else:
            class_names, train, notes = imagenet.train_5k(arguments.full, arguments.class_list, pool, partial=partial)
            validation, absent = imagenet.validation_2012(val_tar, class_names, partial=partial)
            notes["validation_images_of_absent_classes"] = absent
        splits = {"train": train, "validation": validation}
    splits = {key: images for key, images in splits.items() if len(images)}
    return Job(name, tuple(class_names), splits, notes, arguments.images_per_shard, arguments.short_side_px)


def _folder_splits(directory: str) -> tuple[list[str], dict[str, Images]]:
    roots = split_roots(directory)
    if not roots:
        places = " nor ".join(root for key in SPLITS for root in split_folders(directory, key))
        raise UserError(
            f"{directory} has neither {places}. Class folders lie in DIR/train/<class>/ and DIR/validation/<class>/; "
            f"give that DIR with --dir. {other_folders(directory)}"
        )
    if "validation" not in roots:
        say(f"note: {directory} has no validation images. {NEEDS_VALIDATION}")
    classes = {key: class_folders(root) for key, root in roots.items()}
    splits, problems = {}, []
    for key, names in classes.items():
        try:
            splits[key] = folder_images(roots[key], names)
        except UserError as error:
            problems += error.problems
    raise_all(problems + class_problems(roots, classes))  # none: every split has the same names
    return next(iter(classes.values())), splits


def verify(directory: str) -> None:
    """Reads every byte of a prepared directory; raises UserError with every damaged file."""
    manifest = read_manifest(directory)
    if manifest is None:
        raise UserError(f"{directory} has no {MANIFEST}: it was not prepared, or not to the end. Prepare it first.")
    files = manifest.files()
    progress, problems = Progress("verify", len(files), "files"), []
    for start in range(0, len(files), 16):
        problems += check_files(directory, files[start : start + 16], checksums=True)
        progress.update(min(start + 16, len(files)), "")
    progress.close()
    raise_all([f"{text} Remove it, then run the same prepare command again, or copy it again." for text in problems])
    print(f"{directory}: {len(files):,} files are as they were written")


def report(manifest: Manifest, out: str) -> None:
    """Prints what was written, and the command that uses it."""
    notes, written = manifest.notes, 0
    for key, split in manifest.splits.items():
        num_bytes = sum(shard.num_bytes for shard in split.shards)
        written += num_bytes
        print(f"{key:10}  {split.num_images:>10,} images  {len(split.shards):>5,} shards  {num_bytes:>15,} bytes")
    if notes["left_out"]:
        print(f"{len(notes['left_out']):,} images could not be read and were left out; {MANIFEST} names them")
    if manifest.name == "imagenet5k":
        print(
            f"{len(manifest.class_names):,} classes; {len(notes['imagenet1k_labels']):,} of ImageNet-1K, whose labels "
            f"are in {MANIFEST}; an added class has at least {notes['fewest_images_of_an_added_class']:,} images"
        )
    if "mean_psnr_db" in notes:
        print(
            f"short side at most {manifest.settings['short_side_px']} px: {notes['source_bytes']:,} bytes of images "
            f"became {written:,} of shards. The 224 px evaluation crop of a smaller image differs from the original's "
            f"by {notes['mean_difference_levels']} of 255 levels (PSNR {notes['mean_psnr_db']} dB; "
            f"{notes['compared_images']:,} images compared). Results are no longer those of the original files."
        )
    fields = f"--config.data.name={manifest.name} --config.data.dir={out}"
    if "validation" not in manifest.splits:
        print(f"\n{out} has no validation split. {NEEDS_VALIDATION}")
    elif "train" not in manifest.splits:
        print(f"\nEvaluate with --mode=evaluate {fields}")
    else:
        print(f"\nTrain with {fields}")


def main(argv: list[str]) -> int:
    """Runs one command and returns the exit status."""
    parser = flags()
    arguments = parser.parse_args(argv)
    for name, value in vars(arguments).items():
        if isinstance(value, str):
            setattr(arguments, name, os.path.expanduser(value))  # a shell does not expand ~ after "="
    if not arguments.verify and arguments.name is None:
        parser.error("give imagenet2012, imagenet5k or folder, or --verify=DIR")
    return exit_status(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    started_s = time.monotonic()
    raise_all(bucket_problems(*(value for value in vars(arguments).values() if isinstance(value, str))))
    if arguments.verify:
        verify(arguments.verify)
        return
    raise_all(_problems(arguments))
    out, skip_bad = arguments.out, arguments.on_bad_image == "skip"
    with worker_pool(arguments.num_processes) as pool:
        job = make_job(arguments, pool)
        manifest = prepare(job, out, pool, arguments.num_processes, skip_bad=skip_bad)
    print(f"{out} is complete after {duration(time.monotonic() - started_s)}")
    report(manifest, out)


if __name__ == "__main__":
    with user_errors_reported():
        status = main(sys.argv[1:])
    sys.exit(status)
