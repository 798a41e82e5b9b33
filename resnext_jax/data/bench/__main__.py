"""The command line: `python -m resnext_jax.data.bench [--json]`, `python -m resnext_jax.data.bench --memory`."""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile

from resnext_jax.data.bench import contenders, memory
from resnext_jax.data.bench.photos import HEIGHT_PX, QUALITY, WIDTH_PX, photographs
from resnext_jax.errors import UserError, raise_all, report_error, user_errors_reported

BUSY = 0.5  # load from which on other work shows


def flags() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m resnext_jax.data.bench",
        description="Images per second per core: JPEG files -> random-sized crops of 224 px -> uint8 batches, beside "
        "tf.data and PyTorch's DataLoader where they are installed, in turns, on the same photographs. Per core means "
        "per second of processor time, so that other work on the machine does not count.",
    )
    parser.add_argument("--num_cores", type=int, default=1, help="for each, in its turn; default: %(default)s")
    parser.add_argument("--batch_size", type=int, help="default: 64, or 256 with --memory")
    parser.add_argument("--num_images", type=int, default=128, help="photographs; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each, of which the median counts")
    parser.add_argument("--turn_s", type=float, default=3.0, help="seconds of a turn; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--memory", action="store_true", help="resident memory over a pass instead; see --num_records")
    parser.add_argument("--num_records", type=int, default=memory.IMAGENET, help="default: %(default)s")
    parser.add_argument("--num_threads", type=int, default=16, help="of the pass with --memory; default: %(default)s")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Raises UserError for numbers that make no sense."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    least = {"num_cores": 1, "batch_size": 1, "num_images": 1, "repeats": 1, "num_records": 1, "num_threads": 0}
    problems = [
        f"--{name}={value} is too small; it must be {low} or more."
        for name, low in least.items()
        if (value := getattr(arguments, name)) is not None and value < low
    ]
    if arguments.num_cores > available:
        problems.append(f"--num_cores={arguments.num_cores}, but this process may use {available}.")
    if arguments.turn_s <= 0:
        problems.append(f"--turn_s={arguments.turn_s:g} is too short; half a second and more says something.")
    raise_all(problems)


def speed(arguments: argparse.Namespace) -> dict[str, float | None]:
    """Times all that are installed, prints the table, and returns images per second per core and the ratios."""
    files, batch_size = photographs(arguments.num_images), arguments.batch_size or 64
    missing = {name: command for name in contenders.CONTENDERS if (command := contenders.absent(name))}
    names = [name for name in contenders.CONTENDERS if name not in missing]
    mean_kb = statistics.mean(map(len, files)) / 1000
    print(
        f"{len(files)} photographs of {WIDTH_PX}x{HEIGHT_PX} px, JPEG quality {QUALITY}, {mean_kb:.0f} kB on average,\n"
        f"cut from those of scikit-learn; batches of {batch_size} crops of {contenders.SIZE_PX} px; "
        f"{arguments.num_cores} core(s) for each in its turn"
    )
    if (busy := os.getloadavg()[0]) > BUSY:
        print(f"(this machine is busy, load {busy:.1f}: other work takes the caches too: the ratios say more)")
    with tempfile.TemporaryDirectory() as folder:
        one_class = pathlib.Path(folder, "photographs")
        one_class.mkdir()
        for number, file in enumerate(files):
            (one_class / f"{number:05}.jpg").write_bytes(file)
        counts = {key: getattr(arguments, key) for key in ("num_cores", "repeats", "turn_s")}
        how, rates = contenders.in_turns(names, folder, batch_size=batch_size, **counts)
    result = summary(rates)
    print(f"{'images per second per core':18}{'median':>10}  {'(slowest to fastest)':22}{'ours / it':>9}")
    for name in contenders.CONTENDERS:
        if name in missing:
            print(f"{name:26}  not installed: {missing[name]}")
            continue
        low, high = min(rates[name]), max(rates[name])
        ratio = "" if name == "ours" else f"{result[f'ratio_{name}']:9.2f}"
        print(f"{name:26}{result[name]:10.0f}  {f'({low:.0f} to {high:.0f})':22}{ratio}")
    print("".join(f"  {name}: {how[name]}\n" for name in names), end="", flush=True)
    return result


def summary(rates: dict[str, list[float]]) -> dict[str, float | None]:
    """Return the medians, and the median over the turns of ours / theirs; None for one that did not take part."""
    ratios = {
        f"ratio_{name}": [mine / theirs for mine, theirs in zip(rates["ours"], rates.get(name, ()), strict=False)]
        for name in contenders.CONTENDERS
        if name != "ours"
    }
    found = {name: rates.get(name, []) for name in contenders.CONTENDERS} | ratios
    return {key: statistics.median(values) if values else None for key, values in found.items()}


def main() -> None:
    arguments = flags().parse_args()
    try:
        check(arguments)
        result = (memory.measure if arguments.memory else speed)(arguments)
    except UserError as error:
        sys.exit(report_error(error))
    except KeyboardInterrupt:
        sys.exit(130)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    with user_errors_reported():
        main()
