"""Checkpoints that are not what was written: noticed, named, set aside; and saves that the disk does not take."""

import functools
import re
import resource
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_checkpoint import DESCRIPTION, PROGRESS, saved, shapes_of, state_at
from test_hostile import hostile_pickle

from resnext_jax.checkpoint import Checkpoints, locate, newest_sound, read_description, read_variables
from resnext_jax.errors import UserError
from resnext_jax.train.workdir import prepare_workdir

# Not to be compressed: the arrays are then the largest files, as in a checkpoint of a real network.
KERNEL = np.random.default_rng(0).normal(size=(100, 200)).astype(np.float32)
DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state_of(step, factor):
    kernel = jnp.asarray(KERNEL * np.float32(factor))
    return state_at(step).replace(
        params={"conv": {"kernel": kernel}}, opt_state=({}, {"trace": {"conv": {"kernel": -kernel}}})
    )


def largest_file(checkpoint, item="variables"):
    files = [path for path in (checkpoint / item).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(checkpoint):
    path = largest_file(checkpoint)
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(checkpoint):
    """In a number of the optimizer's, which neither orbax nor tensorstore would notice."""
    path = largest_file(checkpoint, "training")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_a_file(checkpoint):
    (checkpoint / "variables" / "manifest.ocdbt").unlink()


def change_the_config(checkpoint):
    path = checkpoint / "config" / "metadata"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 8'))


def garble_the_config(checkpoint):
    path = checkpoint / "config" / "metadata"
    path.write_bytes(b"\x80" * path.stat().st_size)


def lose_the_checksums(checkpoint):
    (checkpoint / "checksums.json").unlink()


def garble_the_checksums(checkpoint):
    (checkpoint / "checksums.json").write_text("[1, 2")


DAMAGES = {
    truncate: r"variables/\S+ has [\d,]+ bytes, [\d,]+ were written",
    flip_a_bit: r"training/\S+ has changed since it was written",
    lose_a_file: r"variables/manifest.ocdbt is missing",
    change_the_config: r"config/metadata has changed since it was written",
    garble_the_config: r"config/metadata has changed since it was written",
    lose_the_checksums: r"checksums.json is missing",
    garble_the_checksums: r"checksums.json cannot be read",
}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    saved(workdir, state_of(4, 0.5), state_of(8, 2))
    return workdir


@pytest.fixture
def workdir(two_checkpoints, tmp_path):
    """Of a run with sound checkpoints of steps 4 and 8."""
    for path in two_checkpoints.rglob("*"):
        copy = tmp_path / path.relative_to(two_checkpoints)
        copy.mkdir() if path.is_dir() else copy.write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_newest_is_set_aside_and_the_one_before_is_used(workdir, damage):
    damage(workdir / "checkpoints" / "8")
    before = tiny.digests(workdir / "checkpoints" / "8")
    said = []
    assert newest_sound(str(workdir), said.append) == 4
    (line,) = said
    assert f"the checkpoint {workdir / 'checkpoints' / '8'} is damaged (" in line
    assert re.search(DAMAGES[damage], line), line
    assert f"moved to {workdir / 'damaged_checkpoints' / '8'}, and that of step 4 is used" in line
    assert tiny.digests(workdir / "damaged_checkpoints" / "8") == before

    checkpoints = Checkpoints(str(workdir), keep_newest=9, keep_best=0)
    restored = checkpoints.restore(4, shapes_of(state_of(4, 1), DEVICE))
    np.testing.assert_array_equal(restored.params["conv"]["kernel"], KERNEL / 2)
    checkpoints.save(state_of(8, 3), DESCRIPTION, PROGRESS)  # the step can be saved again
    checkpoints.close()
    assert newest_sound(str(workdir), pytest.fail) == 8
    damage(workdir / "checkpoints" / "8")
    assert newest_sound(str(workdir), said.append) == 4  # and set aside again
    assert f"moved to {workdir / 'damaged_checkpoints' / '8-2'}" in said[1]


@pytest.mark.parametrize(
    ("name", "content", "said", "reads"),
    [
        ("20240501", "copy", "20240501: holds the checkpoint of step 8", False),
        ("0012", "copy", "0012: a step is written 12", False),
        ("2024", "empty", "2024: no checkpoint", False),
        ("9", "file", "9: no checkpoint", False),
        ("5", "copy", "5: holds the checkpoint of step 8", True),  # what is older is not read
        ("best", "copy", None, True),
        ("8 copy", "empty", None, True),
    ],
)
def test_a_number_must_be_the_step_of_its_checkpoint(workdir, name, content, said, reads):
    """Orbax would take it for a step: a run would go on there, and remove what is older."""
    checkpoints = workdir / "checkpoints"
    if content == "copy":
        shutil.copytree(checkpoints / "8", checkpoints / name)
    else:
        (checkpoints / name).mkdir() if content == "empty" else (checkpoints / name).write_text("notes")
    before = tiny.digests(workdir)
    if said is None:
        assert newest_sound(str(workdir), pytest.fail) == 8
    else:
        with pytest.raises(UserError, match=said):
            newest_sound(str(workdir), pytest.fail)
    if reads:
        assert locate(str(workdir)) == checkpoints / "8"
    else:
        with pytest.raises(UserError, match=said):
            locate(str(workdir))
        if name == "20240501":
            with pytest.raises(UserError, match="holds the checkpoint of step 8"):
                locate(str(checkpoints / name))
    assert tiny.digests(workdir) == before


def test_where_none_is_sound_nothing_is_moved(workdir):
    truncate(workdir / "checkpoints" / "8")
    lose_a_file(workdir / "checkpoints" / "4")
    before = tiny.digests(workdir)
    with pytest.raises(UserError, match=r"no checkpoint in .*checkpoints is sound; nothing was changed") as error:
        newest_sound(str(workdir), pytest.fail)
    assert [line.strip()[:2] for line in error.value.problems[1:-1]] == ["8:", "4:"]
    assert "--workdir" in error.value.problems[-1]
    assert tiny.digests(workdir) == before


def test_evaluation_refuses_damaged_weights_and_names_the_one_before(workdir):
    newest = locate(str(workdir))
    flip_a_bit(workdir / "checkpoints" / "8")  # of the optimizer, which an evaluation does not read
    read_variables(newest, DEVICE)
    truncate(workdir / "checkpoints" / "8")
    with pytest.raises(UserError, match=r"checkpoints/8 is damaged \(variables/") as error:
        read_variables(newest, DEVICE)
    assert f"(the one before: {workdir / 'checkpoints' / '4'})" in str(error.value)
    change_the_config(workdir / "checkpoints" / "8")
    with pytest.raises(UserError, match=r"checkpoints/8 is damaged \(config/metadata has changed"):
        read_description(newest)


def test_progress_comes_back_as_it_was(tmp_path):
    window = {"loss": 0.1 + 0.2, "tiny": 5e-324, "large": 1.7976931348623157e308, "images": 2**60 + 1}
    checkpoints = Checkpoints(str(tmp_path), keep_newest=1, keep_best=0)
    checkpoints.save(state_at(3), DESCRIPTION, {"window": window, "evaluated": False})
    checkpoints.wait()
    assert checkpoints.description(3) == {**DESCRIPTION, "progress": {"window": window, "evaluated": False}}
    checkpoints.close()


# After one failed write orbax closes its event loop, and the threads of the other writes report that.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_the_disk_does_not_take(workdir):
    """A limit on the size of a file stands for a full disk."""
    before = [tiny.digests(workdir / "checkpoints" / name) for name in ("4", "8")]
    state = state_of(12, 1)
    checkpoints = Checkpoints(str(workdir), keep_newest=9, keep_best=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        checkpoints.save(state, DESCRIPTION, PROGRESS)
        with pytest.raises(UserError, match=r"step 12 could not be written to .* \(File too large\)") as error:
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoints.close()
    assert "that of step 8 before it is untouched" in str(error.value)
    assert [tiny.digests(workdir / "checkpoints" / name) for name in ("4", "8")] == before
    assert newest_sound(str(workdir), pytest.fail) == 8


def test_a_disk_that_is_full_from_the_start(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(UserError, match=r"the workdir .* cannot be written \(File too large\).* --workdir=DIR"):
            prepare_workdir(str(tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_directory_that_cannot_be_made_is_said_at_once(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(UserError, match="checkpoints could not be written to"):
        Checkpoints(str(tmp_path), keep_newest=9, keep_best=0)


@pytest.mark.slow
def test_a_directory_that_is_gone_does_not_hang_the_process(tmp_path):
    """Threads of orbax would wait ten minutes for it, and Python at its end for them."""
    code = (
        "import pathlib, sys\n"
        "import jax.numpy as jnp\n"
        "from resnext_jax.checkpoint import Checkpoints\n"
        "from resnext_jax.errors import UserError\n"
        "from resnext_jax.types import TrainState\n"
        "directory = pathlib.Path(sys.argv[1], 'checkpoints')\n"
        "checkpoints = Checkpoints(sys.argv[1], keep_newest=9, keep_best=0)\n"
        "directory.rmdir()\n"
        "directory.write_text('in the way')\n"
        "state = TrainState(jnp.int32(12), {'w': jnp.ones(3)}, {}, {})\n"
        "try:\n"
        "    checkpoints.save(state, {'config': {}, 'dataset': {}})\n"
        "except UserError as error:\n"
        "    print(error)\n"
        "checkpoints.close()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 0, process.stderr
    assert "the checkpoint of step 12 could not be written" in process.stdout


GLOO = "UNKNOWN: Gloo AllGather failed: Connection reset by peer"


@pytest.mark.parametrize(
    ("lost", "cause"),
    [
        (jax.errors.JaxRuntimeError(GLOO), None),
        (ValueError(GLOO), None),
        # What orbax makes of a barrier: an OSError.
        (TimeoutError("the save timed out"), jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: barrier")),
    ],
)
def test_a_save_that_misses_another_process_is_not_the_fault_of_the_directory(workdir, monkeypatch, lost, cause):
    """The save begins with a collective; what failed in one is not to be mended where the checkpoint goes."""
    checkpoints = Checkpoints(str(workdir), keep_newest=9, keep_best=0)

    def collective(*args, **kwargs):
        raise lost from cause

    monkeypatch.setattr(checkpoints._manager, "save", collective)
    with pytest.raises(type(lost)) as error:
        checkpoints.save(state_of(12, 1), DESCRIPTION, PROGRESS)
    assert error.value is lost
    checkpoints.close()


def test_best_and_permanent_are_kept_after_a_restart(tmp_path):
    """Every third step is permanent. Step 1 has the best score; the second process gets the scores at its start."""
    keep: dict[str, Any] = dict(keep_newest=1, keep_best=1, keep_permanently=lambda step: step % 3 == 0)
    checkpoints = Checkpoints(str(tmp_path), **keep)
    for step, score in ((1, 0.9), (2, 0.5), (3, 0.7), (4, 0.6)):
        checkpoints.scores[step] = score
        checkpoints.save(state_at(step), DESCRIPTION, PROGRESS)
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "3", "4"}
    assert saved(tmp_path, *map(state_at, (5, 6, 7)), **keep, scores=checkpoints.scores) == [1, 3, 6, 7]


def test_a_file_of_python_objects_in_a_checkpoint_is_not_run(workdir):
    """Nothing that is loaded is unpickled; see also test_hostile."""
    marker = workdir / "marker"
    newest = workdir / "checkpoints" / "8"
    read = {
        "variables/_METADATA": functools.partial(read_variables, sharding=DEVICE),
        "variables/manifest.ocdbt": functools.partial(read_variables, sharding=DEVICE),
        "config/metadata": read_description,
        "checksums.json": read_description,
    }
    for name, reader in read.items():
        good = (newest / name).read_bytes()
        (newest / name).write_bytes(hostile_pickle(marker))
        with pytest.raises(UserError, match="is damaged"):
            reader(locate(str(newest)))
        (newest / name).write_bytes(good)
    assert not marker.exists()
