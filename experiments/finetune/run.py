"""Fine-tuning against training from scratch, in the same number of steps, on a small folder of real images.

A network is trained on five classes of the built-in Fashion-MNIST images. Then five other classes, a few images each,
lie in a folder as PNG files, and configs/finetune.py is run on it: from the trained weights, with all of them or only
the classifier training, and from fresh ones. Finished runs are not made again.

python experiments/finetune/run.py --scale=tiny|full
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from resnext_jax.data.sources import FASHION_MNIST_CLASSES, open_source  # noqa: E402

FIRST, THEN = FASHION_MNIST_CLASSES[:5], FASHION_MNIST_CLASSES[5:]
MODEL = "resnext20_8x4d_small"
# epochs of the first training; images per class to fine-tune on; steps; seeds
SCALES = {"tiny": (2, 10, 20, (0,)), "full": (10, 20, 100, (0, 1, 2))}
# The network and the preprocessing of the first training, which its checkpoint brings along.
FRESH = (
    *(f"--config.model.name={MODEL}", "--config.data.mean=72.94", "--config.data.std=90.02"),
    *("--config.data.image_size_px=28", "--config.data.resize_px=28", "--config.data.interpolation=bicubic"),
)


def main() -> None:
    """Makes the folder, makes the runs, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="tiny")
    parser.add_argument("--out", type=pathlib.Path, help="default: runs/finetune_<scale>")
    arguments = parser.parse_args()
    num_epochs, images_per_class, num_steps, seeds = SCALES[arguments.scale]
    out = (arguments.out or ROOT / "runs" / f"finetune_{arguments.scale}").absolute()
    images = out / "images"
    write_folder(images, images_per_class)

    class_list = out / "first_classes.txt"
    class_list.write_text("\n".join(FIRST) + "\n")
    start = out / "first"
    train("quickstart", start, f"--config.num_epochs={num_epochs}", f"--config.data.class_list={class_list}")

    rows = {
        "from scratch, rate 0.1": (*FRESH, "--config.learning_rate=0.1"),
        "from scratch, rate 0.01": (*FRESH, "--config.learning_rate=0.01"),
        "fine-tuned, all of it, rate 0.01": (f"--config.init_from={start}", "--config.learning_rate=0.01"),
        "fine-tuned, classifier alone, rate 0.1": (
            *(f"--config.init_from={start}", "--config.learning_rate=0.1", "--config.freeze_backbone=true"),
        ),
    }
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


def write_folder(directory: pathlib.Path, images_per_class: int) -> None:
    """Class folders of PNG files: the first few training images of each class, and all for validation."""
    for split, limit in (("train", images_per_class), ("validation", None)):
        source = open_source("builtin", split)
        labels = source.all_labels()
        for label, name in enumerate(FASHION_MNIST_CLASSES):
            if name in THEN:
                folder = directory / split / name.lower().replace(" ", "_")
                folder.mkdir(parents=True, exist_ok=True)
                for index in (labels == label).nonzero()[0][:limit]:
                    Image.fromarray(source[int(index)].image[..., 0]).save(folder / f"{index:05}.png")


def train(config: str, workdir: pathlib.Path, *flags: str) -> float:
    """Runs the command, or goes on with it, and returns the last validation top-1."""
    metrics = workdir / "metrics.jsonl"
    command = [sys.executable, "main.py", f"--config=configs/{config}.py", f"--workdir={workdir}", *flags]
    process = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        sys.exit(f"{process.stderr}\nfailed: {' '.join(command)}")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [row["top1"] for row in rows if row["phase"] == "evaluate"][-1]


if __name__ == "__main__":
    main()
