"""Section 5.1: the time of a training step beside ResNet-101's, as the paper gives it for 8 GPUs of type M40.

python experiments/step_times/run.py --scale=tiny|compiler|full

Every network is timed (analysis.bench) or compiled (analysis.aot) by a command of its own, whose result is kept.
"""

import dataclasses
import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.common import files, runs
from experiments.common.command import FAILED_STATUS, end, parser_of
from experiments.common.draw import COLORS
from resnext_jax.errors import UserError
from resnext_jax.files import write_whole
from resnext_jax.json_files import read_json
from resnext_jax.progress import say

EXPERIMENT = "step_times"
# Seconds of one mini-batch of 256 images.
PUBLISHED_S = {"resnet101": 0.70, "resnext101_32x4d": 0.95, "resnext101_64x4d": 1.7}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How the networks are timed or compiled."""

    takes: str  # how long, in words
    module: str  # of `analysis`
    flags: tuple[str, ...]
    unit: str  # of the result
    on_device: bool = False  # commands are printed, and run here only with --run

    def command(self, network: str) -> list[str]:
        """The words after `python`. The config comes before its fields."""
        return ["-m", f"resnext_jax.analysis.{self.module}", f"--config=configs/{network}.py", *self.flags]


ESTIMATE = "estimate of the TPU compiler"
BENCH = ("--peer=none", "--json")
SMALL = ("--config.batch_size=8", "--config.data.image_size_px=64", "--config.compute_dtype=float32", "--repeats=3")
SCALES = {
    "tiny": Scale("8 images of 64 px on this machine, three minutes on two cores", "bench", (*BENCH, *SMALL), "s"),
    "compiler": Scale(
        "the TPU compiler's estimate for 8 chips of v5e, half an hour on two cores; needs libtpu",
        "aot",
        ("--topology=v5e:2x4", "--json"),
        f"M cycles ({ESTIMATE})",
    ),
    "full": Scale("256 images of 224 px on one accelerator, minutes", "bench", BENCH, "s", on_device=True),
}


def execute(arguments: Namespace) -> int:
    """Time what is not timed yet, print and write the table."""
    out = files.folder_of(arguments, EXPERIMENT, SCALES)
    scale = SCALES[arguments.scale]
    if scale.on_device and not arguments.run:
        for network in PUBLISHED_S:
            print("python " + " ".join(scale.command(network)))
        asked = [f"--scale={arguments.scale}", *([f"--out={arguments.out}"] if arguments.out else [])]
        again = shlex.join(["python", sys.argv[0], *asked])
        print(f"# or all of them, and the table: {again} --run")
        return 0
    logs, failures = files.claim_folder(out, EXPERIMENT, arguments.scale), []
    with files.locked(logs):
        for network in PUBLISHED_S:
            kept = epath.Path(out) / f"{network}.json"
            if not kept.exists():
                say(f"{network} ...")
                try:
                    found = runs.call_json(scale.command(network), logs / f"{network}.log")
                    write_whole(kept, json.dumps(found) + "\n")
                except runs.Failed as failure:
                    failures.append(network)
                    say(f"{network}: {failure}")
    rows = [row_of(network, epath.Path(out) / f"{network}.json", scale) for network in PUBLISHED_S]
    devices = {row["device"]: row["name"] for row in rows if row["device"]}
    if len(devices) > 1:
        raise UserError(
            f"{out} has times of different devices: {'; '.join(f'{name} on {at}' for at, name in devices.items())}. "
            "Their ratios say nothing of the networks: take another folder (--out=DIR), or remove the files of one."
        )
    text = table(rows, arguments.scale, scale)
    result = {"experiment": EXPERIMENT, "scale": arguments.scale, "complete": not failures, "rows": rows}
    ours = ESTIMATE if ESTIMATE in scale.unit else "ours"
    files.write(out, text, result, (lambda figure: draw(figure, rows, ours)) if rows[0]["ours"] else None)
    return FAILED_STATUS if failures else 0


def row_of(network: str, kept: epath.Path, scale: Scale) -> dict[str, Any]:
    form = {"estimated_cycles": float} if scale.unit != "s" else {"batch_size": float, "train": {"ours": float}}
    form |= {"device?": str, "topology?": (str, None)}
    found = read_json(kept, form, "Remove it, and it is measured again.") if kept.exists() else None
    ours = None
    if found is not None:
        ours = found["estimated_cycles"] / 1e6 if scale.unit != "s" else found["batch_size"] / found["train"]["ours"]
    # A report of the compiler calls one of the topology's devices a chip.
    device = found and (found.get("topology") or found["device"])
    return {"name": network, "published_s": PUBLISHED_S[network], "ours": ours, "device": device}


def table(rows: Sequence[dict[str, Any]], name: str, scale: Scale) -> str:
    lines = [["network", "published", "of ResNet-101", f"here, {scale.unit}", "of ResNet-101"]]
    for row in rows:
        both = row["ours"] and rows[0]["ours"]
        lines.append(
            [
                *(row["name"], f"{row['published_s']:.2f} s", f"{row['published_s'] / rows[0]['published_s']:.2f}"),
                f"{row['ours']:.2f}" if row["ours"] else "missing",
                f"{row['ours'] / rows[0]['ours']:.2f}" if both else "",
            ]
        )
    where = next((f" on {row['device']}" for row in rows if row["device"]), "")
    return f"# Section 5.1, one training step{where}, --scale={name}\n\n{files.markdown(lines)}\n"


def draw(figure: Any, rows: Sequence[dict[str, Any]], ours: str) -> None:
    """Draw the ratios to ResNet-101, published and here, which is called `ours`."""
    figure.set_size_inches(6.4, 3.8)
    axes = figure.add_subplot()
    made = [row for row in rows if row["ours"]]
    bars_of = ((-0.2, "published_s", "published", COLORS[6]), (0.2, "ours", ours, COLORS[0]))
    for shift, key, label, color in bars_of:
        ratios = [row[key] / rows[0][key] for row in made]
        bars = axes.bar([at + shift for at in range(len(made))], ratios, 0.38, color=color, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(range(len(made)), [row["name"] for row in made])
    axes.set_ylabel("time of a step / ResNet-101's")
    axes.legend(frameon=False)


if __name__ == "__main__":
    parser = parser_of(EXPERIMENT, {name: scale.takes for name, scale in SCALES.items()}, __doc__)
    parser.add_argument("--run", action="store_true", help="full scale: time the networks here, print no commands")
    end(lambda: execute(parser.parse_args()))
