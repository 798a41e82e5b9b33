"""The command line: `python -m resnext_jax.convert torchvision|timm|torch7 FILE --model=NAME --out=DIR`, and back."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from resnext_jax.convert.back import convert_back
from resnext_jax.convert.take import FORMATS, convert
from resnext_jax.convert.weights import others_note
from resnext_jax.errors import UserError, report_error, user_errors_reported
from resnext_jax.files import read_names

BACK = "checkpoint"


def flags() -> argparse.ArgumentParser:
    """Return the parser of the commands and their flags."""
    parser = argparse.ArgumentParser(
        prog="python -m resnext_jax.convert",
        description="Weights of torchvision, timm and Torch7 (also the WSL, SSL and SWSL ResNeXts, which bear "
        "torchvision's names) to a checkpoint that loads, evaluates, predicts and fine-tunes; and back to torchvision. "
        "Files are read as data: nothing in them is executed.",
    )
    commands = parser.add_subparsers(dest="format", required=True, metavar="{torchvision,timm,torch7,checkpoint}")
    kinds = {"torchvision": ".pth or .safetensors", "timm": ".safetensors or .pth", "torch7": ".t7"}
    for their in FORMATS:
        command = commands.add_parser(their, help=f"{kinds[their]} -> a checkpoint")
        command.add_argument("file", metavar="FILE", help=kinds[their])
        command.add_argument("--model", required=True, help="the network: resnext_jax.list_models()")
        command.add_argument(
            "--out", required=True, metavar="DIR", help="a new directory, a workdir for main.py; again, it resumes"
        )
        command.add_argument(
            "--class_names", metavar="FILE", help="one per line, in label order; by default ImageNet's for 1000 classes"
        )
        command.set_defaults(weights=None)
        if their != "torch7":
            command.add_argument(
                "--weights", metavar="NAME", help="of published weights: their preprocessing; by default by checksum"
            )
    back = commands.add_parser(BACK, help="a checkpoint -> a file of torchvision")
    back.add_argument("file", metavar="DIR", help="a workdir, its checkpoints, or one checkpoint")
    back.add_argument("--to", required=True, choices=("torchvision",), help="whose file to write")
    back.add_argument("--out", required=True, metavar="FILE", help="a new .pth")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs one command and returns the exit status."""
    arguments = flags().parse_args(argv)
    logging.getLogger("absl").setLevel(logging.WARNING)  # orbax tells a lot
    file, out = os.path.expanduser(arguments.file), os.path.expanduser(arguments.out)
    try:
        if arguments.format == BACK:
            print(f"{out}: {convert_back(file, out):,} arrays, for torchvision's load_state_dict")
            return 0
        class_names = arguments.class_names and read_names(arguments.class_names)
        count, row, done = convert(
            arguments.format, file, arguments.model, out, weights=arguments.weights, class_names=class_names
        )
    except UserError as error:
        return report_error(error)
    for line in others_note(arguments.format, arguments.model, row):
        print(line, file=sys.stderr)
    if done:
        print(f"{out} has been converted from the same file before, and is left as it is")
    print(
        f"{out}: {arguments.model}, all {count:,} arrays of {file}; images of {row.image_size_px} px cut out of "
        f"{row.resize_px}, {row.interpolation}{f', as for {row.name}' if row.name else ''}\n"
        f"  python main.py --mode=evaluate --workdir={out} --config.data.dir=IMAGENET\n"
        f"  python main.py --mode=predict --workdir={out} IMAGE...\n"
        f"  python main.py --config=configs/finetune.py --config.init_from={out} --config.data.dir=FOLDER"
    )
    return 0


if __name__ == "__main__":
    with user_errors_reported():
        status = main(sys.argv[1:])
    sys.exit(status)
