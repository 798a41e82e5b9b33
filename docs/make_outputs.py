"""Write what the pages show of the quickstart: trains it once, minutes on two cores.

python docs/make_outputs.py

The output in README.md, docs/quickstart_metrics.jsonl and docs/quickstart_curves.png come from this one run, in
runs/quickstart, which must not exist. `tests/test_shown_outputs.py` compares them.
"""

import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
RUN = ROOT / "runs" / "quickstart"
METRICS, CURVES = ROOT / "docs" / "quickstart_metrics.jsonl", ROOT / "docs" / "quickstart_curves.png"
COMMAND = (sys.executable, "main.py", "--config=configs/quickstart.py")
# What `make demo` prints before, and a block of the README.
INSTALLATION = (
    "$ make demo",
    "Making .venv with Python 3.11.7 ...",
    "Installing the packages of requirements.lock into .venv (about a minute with a fast network) ...",
)
BLOCK = re.compile(r"```\n\$ make demo\n.*?```\n", re.DOTALL)


def run(*arguments: str) -> list[str]:
    """Return the lines that the command prints."""
    command = subprocess.run(
        (*COMMAND, *arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    return command.stdout.replace(f"{ROOT}/", "").splitlines()


def shortened(lines: list[str]) -> list[str]:
    """Return the lines of training without those that depend on the speed of the machine."""
    compiled = next(index for index, line in enumerate(lines) if line.startswith("compiled in"))
    last = max(index for index, line in enumerate(lines) if line.startswith("evaluate  "))
    return [*lines[:compiled], "...", *lines[last:]]


def main() -> None:
    """Train, evaluate, and write the README's block and the two files."""
    if RUN.exists():
        sys.exit(f"{RUN} is there already: move it away, because the output of a run that goes on is another one")
    lines = [*INSTALLATION, *shortened(run()), *run("--mode=evaluate")]
    readme = ROOT / "README.md"
    block = "\n".join(["```", *lines, "```", ""])
    readme.write_text(BLOCK.sub(lambda _: block, readme.read_text(), count=1))
    shutil.copy(RUN / "metrics.jsonl", METRICS)
    shutil.copy(RUN / "curves.png", CURVES)


if __name__ == "__main__":
    main()
