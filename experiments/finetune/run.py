"""Fine-tuning against training from scratch, in the same number of steps, on a small folder of real images.

A network is trained on five classes of the built-in Fashion-MNIST images. Then five other classes, a few images each,
lie in a folder as PNG files, and configs/finetune.py is run on it: from the trained weights, with all of them or only
the classifier training, and from fresh ones. Finished runs are not made again.

python experiments/finetune/run.py --scale=tiny|full
"""

import statistics
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.common import files, runs
from experiments.common.command import FAILED_STATUS, end, parser_of
from resnext_jax.data.sources import FASHION_MNIST_CLASSES, open_source
from resnext_jax.errors import UserError
from resnext_jax.files import in_bucket
from resnext_jax.progress import say
from resnext_jax.runtime.writer import read_metrics

EXPERIMENT = "finetune"
FIRST, THEN = FASHION_MNIST_CLASSES[:5], FASHION_MNIST_CLASSES[5:]
MODEL = "resnext20_8x4d_small"
# epochs of the first training; images per class to fine-tune on; steps; seeds
SCALES = {"tiny": (2, 10, 20, (0,)), "full": (10, 20, 100, (0, 1, 2))}
TAKES = {"tiny": "minutes on a CPU", "full": "more epochs, images and steps, and three seeds"}
# The network and the preprocessing of the first training, which its checkpoint brings along.
FRESH = (
    *(f"--config.model.name={MODEL}", "--config.data.mean=72.94", "--config.data.std=90.02"),
    *("--config.data.image_size_px=28", "--config.data.resize_px=28", "--config.data.interpolation=bicubic"),
)


def execute(arguments: Namespace) -> int:
    """Make the folder of images and the runs, print the table, and return the exit status."""
    folder = files.folder_of(arguments, EXPERIMENT, SCALES)
    if in_bucket(folder):
        raise UserError(f"--out={folder} is in a bucket; the images and runs of this experiment want a local folder.")
    out = files.claim_folder(folder, EXPERIMENT, arguments.scale)
    try:
        with files.locked(out):
            fine_tune(out, *SCALES[arguments.scale])
    except runs.Failed as failure:
        say(str(failure))
        return FAILED_STATUS
    return 0


def fine_tune(out: Path, num_epochs: int, images_per_class: int, num_steps: int, seeds: Sequence[int]) -> None:
    """Make the runs in `out` and print a line for each row; raise Failed where a run fails."""
    images, class_list, start = out / "images", out / "first_classes.txt", out / "first"
    write_folder(images, images_per_class)
    class_list.write_text("\n".join(FIRST) + "\n")
    rows = {
        "from scratch, rate 0.1": (*FRESH, "--config.learning_rate=0.1"),
        "from scratch, rate 0.01": (*FRESH, "--config.learning_rate=0.01"),
        "fine-tuned, all of it, rate 0.01": (f"--config.init_from={start}", "--config.learning_rate=0.01"),
        "fine-tuned, classifier alone, rate 0.1": (
            *(f"--config.init_from={start}", "--config.learning_rate=0.1", "--config.freeze_backbone=true"),
        ),
    }
    train("quickstart", start, f"--config.num_epochs={num_epochs}", f"--config.data.class_list={class_list}")
    print(f"{images_per_class} images of each of {len(THEN)} classes, {num_steps} steps of 50; top-1 on 1,500 others")
    for number, (name, flags) in enumerate(rows.items()):
        results = [
            train(
                "finetune",
                out / f"run{number}_seed{seed}",
                *(f"--config.data.dir={images}", "--config.data.crop=resize", f"--config.num_steps={num_steps}"),
                *("--config.batch_size=50", "--config.bn_group_images=0", f"--config.seed={seed}"),
                *(f"--config.evaluate.every_steps={num_steps}", "--config.schedule.warmup_epochs=0"),
                *flags,
            )
            for seed in seeds
        ]
        each = ", ".join(f"{top1:.2%}" for top1 in results)
        print(f"{name:40} {statistics.mean(results):7.2%}   ({each})", flush=True)


def write_folder(directory: Path, images_per_class: int) -> None:
    """Write class folders of PNG files: the first training images of each class, and all for validation."""
    for split, limit in (("train", images_per_class), ("validation", None)):
        source = open_source("builtin", split)
        labels = source.all_labels()
        for label, name in enumerate(FASHION_MNIST_CLASSES):
            if name in THEN:
                folder = directory / split / name.lower().replace(" ", "_")
                folder.mkdir(parents=True, exist_ok=True)
                for index in (labels == label).nonzero()[0][:limit]:
                    Image.fromarray(np.asarray(source[int(index)].image)[..., 0]).save(folder / f"{index:05}.png")


def train(config: str, workdir: Path, *flags: str) -> float:
    """Train, or go on with it, and return the last validation top-1; raise Failed where it fails."""
    say(f"{workdir.name} ...")
    log = workdir.with_name(f"{workdir.name}.log")
    runs.call(["main.py", f"--config=configs/{config}.py", f"--workdir={workdir}", *flags], log)
    return [row["top1"] for row in read_metrics(str(workdir)) if row["phase"] == "evaluate"][-1]


if __name__ == "__main__":
    end(lambda: execute(parser_of(EXPERIMENT, TAKES, __doc__).parse_args()))
