"""docs/pod.md: the restart loop, run as it stands there, with a fake program in place of main.py."""

import os
import re
import subprocess

import pytest
import tiny


@pytest.mark.parametrize(
    ("statuses", "starts", "status"),
    [
        ([0], 1, 0),
        ([75, 134, 1, 137, 143, 0], 6, 0),
        ([134, 2, 0], 2, 2),
        ([130, 0], 2, 0),
    ],
)
@pytest.mark.slow
def test_loop_runs_again_except_after_success_and_a_mistake(tmp_path, statuses, starts, status):
    (script,) = re.findall(
        r"<!-- run\.sh -->\n```bash\n(.*?)```", (tiny.ROOT / "docs" / "pod.md").read_text(), re.DOTALL
    )
    (tmp_path / "run.sh").write_text(script)
    (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    python, sleep = tmp_path / "python", tmp_path / "sleep"
    # Notes its arguments, and ends with the first status of the list, which it removes.
    python.write_text(
        '#!/bin/bash\nprintf "%s|" "$@" >> starts; echo >> starts\n'
        "status=$(head -n 1 statuses); sed -i 1d statuses; exit $status\n"
    )
    sleep.write_text("#!/bin/bash\necho $1 >> slept\n")
    for program in (python, sleep):
        program.chmod(0o755)
    process = subprocess.run(
        ["bash", "run.sh", "--config=a b.py", "--workdir=c"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == status, process.stderr
    assert (tmp_path / "starts").read_text().splitlines() == ["main.py|--config=a b.py|--workdir=c|"] * starts
    slept = (tmp_path / "slept").read_text().split() if starts > 1 else []
    assert slept == ["10"] * (starts - 1)
    assert process.stderr.count("running again") == starts - 1
