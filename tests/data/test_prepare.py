"""data.prepare: from archives and folders to records, twice the same, after a kill, and never half."""

import errno
import hashlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from etils import epath
from PIL import Image

from resnext_jax.data import records
from resnext_jax.data.prepare import directory, imagenet, shards
from resnext_jax.data.prepare.__main__ import main
from resnext_jax.data.prepare.images import Entry
from resnext_jax.data.prepare.tars import list_tar
from resnext_jax.data.sources import open_source
from resnext_jax.errors import UserError
from tests.data.archives import PHOTOS, class_files, class_tar_of_tars, jpeg, tar_of, validation_tar, write_folders

CLASSES = ["n01", "n02", "n03"]
TRUTH = ["n03", "n01", "n02", "n03", "n03", "n01"]  # of the validation images 1 to 6
COUNTS = {"n03": 4, "n01": 6, "n02": 5}


@pytest.fixture(autouse=True)
def a_small_imagenet(monkeypatch):
    """ImageNet-1K of 3 classes and 6 validation images; ImageNet-5K of 5 classes."""
    lines = {"labels.txt": CLASSES, "validation_labels.txt": TRUTH}
    monkeypatch.setattr(imagenet, "shipped_lines", lines.__getitem__)
    monkeypatch.setattr(imagenet, "NUM_CLASSES_5K", 5)


@pytest.fixture
def tars(tmp_path) -> pathlib.Path:
    root = tmp_path / "tars"
    root.mkdir()
    (root / "train.tar").write_bytes(class_tar_of_tars(COUNTS))
    (root / "val.tar").write_bytes(validation_tar(6))
    return root


def prepare_2012(tars, out, *more) -> int:
    flags = [f"--train_tar={tars / 'train.tar'}", f"--val_tar={tars / 'val.tar'}", f"--out={out}", "--num_processes=1"]
    return main(["imagenet2012", *flags, *more])


def folder_flags(root: pathlib.Path, *more: str) -> list[str]:
    return ["folder", f"--dir={root}", f"--out={root / 'out'}", "--num_processes=1", *more]


def command_of(root: pathlib.Path, *more: str) -> list[str]:
    """The command for the class folders in `root`, for a process of its own."""
    return [sys.executable, "-m", "resnext_jax.data.prepare", "folder", f"--dir={root}", *more]


def contents(out: pathlib.Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}


def images_of(source) -> dict[str, tuple[bytes, int]]:
    return {record.name: (record.image, record.label) for record in map(source.__getitem__, range(len(source)))}


# ---- ImageNet's archives


def test_the_shipped_lists_are_imagenets(monkeypatch):
    monkeypatch.undo()
    classes, truth = imagenet.imagenet1k_classes(), imagenet.shipped_lines("validation_labels.txt")
    assert classes == sorted(set(classes))
    assert (len(classes), classes[0], classes[-1]) == (1000, "n01440764", "n15075141")
    # of every class 50 validation images; the first shows a grass snake or so, n01751748
    assert (len(truth), truth[0], {truth.count(name) for name in classes[:20]}) == (50_000, "n01751748", {50})


def test_imagenet2012_from_its_tars(tars, tmp_path, capsys):
    assert prepare_2012(tars, tmp_path / "out", "--images_per_shard=4") == 0
    assert "train 15 images 2 shards" in " ".join(capsys.readouterr().out.split())
    expected = {
        f"{name}/{file}": (data, CLASSES.index(name))
        for name, files in class_files(COUNTS).items()
        for file, data in files.items()
    }
    for name in ("imagenet2012", "records"):
        train = open_source(name, "train", data_dir=str(tmp_path / "out"))
        assert train.info.class_names == tuple(CLASSES)
        assert images_of(train) == expected
    np.testing.assert_array_equal(train.all_labels(), [train[i].label for i in range(15)])
    validation = open_source("imagenet2012", "validation", data_dir=str(tmp_path / "out"))
    assert images_of(validation) == {
        f"{name}/ILSVRC2012_val_{i:08}.JPEG": (jpeg(1000 + i), CLASSES.index(name)) for i, name in enumerate(TRUTH, 1)
    }
    files = {"manifest.json", "train.labels", "validation.labels", "validation-00000-of-00001.array_record"}
    files |= {"train-00000-of-00002.array_record", "train-00001-of-00002.array_record"}
    assert contents(tmp_path / "out").keys() == files


def test_a_record_by_hand():
    assert records.pack(b"image", 258, "ä/b") == b"\x02\x01\0\0\x04\0" + "ä/b".encode() + b"image"
    assert records.unpack(b"\x07\0\0\0\x01\0xrest") == (b"rest", 7, "x")


@pytest.mark.slow
def test_the_same_bytes_from_any_number_of_processes(tmp_path):
    write_folders(tmp_path, "train", {"a": 20, "b": 20})
    for out, processes in (("one", 1), ("two", 2)):
        flags = [f"--dir={tmp_path}", f"--out={tmp_path / out}", "--images_per_shard=5"]
        assert main(["folder", *flags, f"--num_processes={processes}"]) == 0
    assert len(contents(tmp_path / "one")) == 8 + 2
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(
    ("num_images", "count"), [(1_281_167, 1024), (50_000, 64), (6_800_000, 1024), (1400, 2), (1399, 1), (1, 1)]
)
def test_number_of_shards(num_images, count):
    assert shards.num_shards(num_images, 700) == count


def test_every_image_is_in_one_shard():
    parts = list(shards.assign(1003, 8))
    assert sorted(np.concatenate(parts).tolist()) == list(range(1003))
    assert {len(part) for part in parts} == {125, 126}
    assert all((np.diff(part) > 0).all() for part in parts)
    # the first quarter of the list is spread over all shards
    assert min((part < 250).sum() for part in parts) > 15


# ---- ImageNet-5K

# x3 and x1 have as many images: one of them is the last that is chosen, by name
COUNTS_5K = {"n02": 1, "x3": 3, "n01": 2, "x4": 2, "x2": 5, "n03": 1, "x1": 3}


def test_the_classes_with_the_most_images_are_chosen():
    assert imagenet.choose_classes(COUNTS_5K, CLASSES, 5) == ["n01", "n02", "n03", "x1", "x2"]
    assert imagenet.choose_classes(COUNTS_5K, CLASSES, 6) == ["n01", "n02", "n03", "x1", "x2", "x3"]
    assert imagenet.choose_classes(COUNTS_5K, CLASSES, 3) == CLASSES


def test_imagenet5k_from_a_tar_or_a_folder_of_class_tars(tars, tmp_path, capsys):
    (tars / "full.tar").write_bytes(class_tar_of_tars(COUNTS_5K))
    (tars / "full").mkdir()
    for name, files in class_files(COUNTS_5K).items():
        (tars / "full" / f"{name}.tar").write_bytes(tar_of(files))
    for full in ("full.tar", "full"):
        flags = [f"--full={tars / full}", f"--val_tar={tars / 'val.tar'}", "--num_processes=1"]
        assert main(["imagenet5k", *flags, f"--out={tmp_path / ('out-' + full)}"]) == 0
    assert "an added class has at least 3 images" in capsys.readouterr().out
    assert contents(tmp_path / "out-full.tar") == contents(tmp_path / "out-full")
    manifest = records.read_manifest(tmp_path / "out-full")
    assert manifest is not None
    assert manifest.class_names == ("n01", "n02", "n03", "x1", "x2")
    assert manifest.notes["imagenet1k_labels"] == [0, 1, 2]
    source = open_source("imagenet5k", "train", data_dir=str(tmp_path / "out-full"))
    assert np.bincount(source.all_labels()).tolist() == [2, 1, 1, 3, 5]

    (tmp_path / "list").write_text("x4\nx3\nn01\n\nn02\nn03\n")
    flags += [f"--class_list={tmp_path / 'list'}", f"--out={tmp_path / 'listed'}"]
    assert main(["imagenet5k", *flags]) == 0
    listed = open_source("imagenet5k", "train", data_dir=str(tmp_path / "listed"))
    assert listed.info.class_names == ("n01", "n02", "n03", "x3", "x4")
    for names, problem in (
        ("x4 x9 n02 n03 x1 x2", "list: unknown class 'x9'. Known: n01, n02"),
        ("x4 x3 n02 n03 x1", "list lacks 1 of the 1000 classes of ImageNet-1K, the first 'n01'"),
        ("x4 x3 n01 n02 n03 x1", "list has 6 classes; ImageNet-5K has 5. Remove 1 of them. For a trial"),
        ("x4 x2 n01 n02 n03", "listed holds another preparation (of other images, or of other classes)"),
    ):
        (tmp_path / "list").write_text(names.replace(" ", "\n"))
        text = failure(capsys, "imagenet5k", *flags)
        assert problem in text
        assert "sha256" not in text
    (tmp_path / "list").write_text("x4\nx3\nn02\nn03\nx1\n")
    # validation images of a class that is not there have no label
    assert main(["imagenet5k", *flags[:-1], "--partial", f"--out={tmp_path / 'partial'}"]) == 0
    validation = open_source("imagenet5k", "validation", data_dir=str(tmp_path / "partial"))
    assert validation.info.class_names == ("n02", "n03", "x1", "x3", "x4")
    assert sorted(label for _, label in images_of(validation).values()) == [0, 1, 1, 1]


# ---- killed and run again


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path):
    write_folders(tmp_path, "train", {"a": 96, "b": 64}, width=500, height=375)
    command = command_of(tmp_path, "--num_processes=2", "--images_per_shard=10")
    process = subprocess.Popen([*command, f"--out={tmp_path / 'killed'}"], stderr=subprocess.DEVNULL)
    progress, deadline_s = tmp_path / "killed" / "unfinished.json", time.monotonic() + 60
    finished = []
    while len(finished) < 3:
        assert time.monotonic() < deadline_s
        assert process.poll() is None, "it was through before it could be killed"
        time.sleep(0.002)
        if progress.exists():
            finished = [shard["file"]["file"] for shard in json.loads(progress.read_text())["shards"]]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    with pytest.raises(UserError, match="is not complete"):
        open_source("records", "train", data_dir=str(tmp_path / "killed"))
    stamps = {name: (tmp_path / "killed" / name).stat() for name in finished}
    again = subprocess.run([*command, f"--out={tmp_path / 'killed'}"], capture_output=True, text=True, check=True)
    assert " of 16 shards are finished already" in again.stdout
    for name, before in stamps.items():
        after = (tmp_path / "killed" / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    subprocess.run([*command, f"--out={tmp_path / 'whole'}"], capture_output=True, check=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "whole")) == 16 + 2


def of_group(group: int) -> list[str]:
    """The processes of a group that still run (a dead one waits for somebody to ask for it)."""
    found = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if line.split()[0] == str(group) and line.split()[1][0] != "Z"]


# With 1 in the middle of the work, with 4 while workers are still being started.
@pytest.mark.parametrize(("num_processes", "until"), [(1, "*.array_record"), (4, "unfinished.json")])
@pytest.mark.slow
def test_ctrl_c_ends_it_at_once_and_leaves_nothing_behind(tmp_path, num_processes, until):
    write_folders(tmp_path, "train", {"a": 60, "b": 60}, width=500, height=375)
    out = tmp_path / "out"
    slow = ("--images_per_shard=5", "--short_side_px=300")
    command = command_of(tmp_path, f"--out={out}", f"--num_processes={num_processes}", *slow)
    # A terminal sends it to all of the group; a job in the background would ignore it.
    code = f"import os, signal; signal.signal(2, signal.default_int_handler); os.execv({sys.executable!r}, {command!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline_s = time.monotonic() + 60
        while not list(out.glob(until)):
            assert time.monotonic() < deadline_s
            assert process.poll() is None, "it was through before it could be interrupted"
            time.sleep(0.002)
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        while of_group(process.pid) and time.monotonic() < deadline_s:
            time.sleep(0.1)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.endswith("stopped; the same command goes on from here\n")
    assert "Traceback" not in errors
    assert not (out / "manifest.json").exists()
    assert not of_group(process.pid)


def test_a_finished_directory_is_mended_not_written_anew(tmp_path, capsys):
    write_folders(tmp_path, "train", {"a": 20, "b": 20})
    flags = folder_flags(tmp_path, "--images_per_shard=10", "--short_side_px=40")
    assert main(flags) == 0
    before = contents(tmp_path / "out")
    first, second = sorted((tmp_path / "out").glob("*.array_record"))[:2]
    stamp = second.stat().st_mtime_ns
    os.truncate(first, 1000)
    (tmp_path / "out" / "unfinished.json").write_text("{}")  # as if it had been killed when all was done
    assert main(flags) == 0
    assert contents(tmp_path / "out") == before
    assert main(flags) == 0
    assert second.stat().st_mtime_ns == stamp
    content = bytearray(first.read_bytes())
    content[len(content) // 3] ^= 1
    first.write_bytes(content)
    capsys.readouterr()
    assert main([f"--verify={tmp_path / 'out'}"]) == 2
    assert f"{first} has other content than was written" in capsys.readouterr().err


# ---- two at once


@pytest.mark.slow
def test_a_second_command_on_the_same_directory_waits_its_turn(tmp_path, capsys):
    write_folders(tmp_path, "train", {"a": 2})
    flags = folder_flags(tmp_path)
    code = "import sys; from resnext_jax.data.prepare.directory import locked\n"
    code += "with locked(sys.argv[1]): print('locked', flush=True); sys.stdin.read()"
    command, root = [sys.executable, "-c", code, str(tmp_path / "out")], pathlib.Path(__file__).parents[2]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)
    try:
        assert holder.stdout.readline() == b"locked\n"
        assert f"another prepare command is writing to {tmp_path / 'out'}" in failure(capsys, *flags)
        assert not list((tmp_path / "out").iterdir())
    finally:
        holder.kill()  # which is all that it takes to end its lock
        holder.communicate()
    assert main(flags) == 0
    assert main(flags) == 0


def test_where_nothing_can_be_locked_it_goes_on_and_says_so(tmp_path, capsys, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(directory.fcntl, "flock", unsupported)
    write_folders(tmp_path, "train", {"a": 2})
    assert main(folder_flags(tmp_path)) == 0
    assert "out cannot be locked (No locks available): start no second" in capsys.readouterr().out


# ---- smaller images


def test_short_side(tmp_path, capsys):
    write_folders(tmp_path, "train", {"a": 2}, width=400, height=300)
    small = tmp_path / "train" / "a" / "small.JPEG"
    small.write_bytes(jpeg(5, 300, 240))
    assert main(folder_flags(tmp_path, "--short_side_px=240")) == 0
    source = open_source("folder", "train", data_dir=str(tmp_path / "out"))
    images = {name: data for name, (data, _) in images_of(source).items()}
    assert images["a/small.JPEG"] == small.read_bytes()

    for name in ("a/000.JPEG", "a/001.JPEG"):
        assert Image.open(io.BytesIO(images[name])).size == (320, 240)
    text = capsys.readouterr().out
    assert "short side at most 240 px" in text
    assert "Results are no longer those of the original files" in text
    manifest = records.read_manifest(tmp_path / "out")
    assert manifest is not None
    assert 25 < manifest.notes["mean_psnr_db"] < 50
    assert manifest.notes["source_bytes"] == sum(path.stat().st_size for path in small.parent.iterdir())


# ---- what goes wrong


def failure(capsys, *flags) -> str:
    capsys.readouterr()
    assert main(list(flags)) == 2
    text = capsys.readouterr().err.strip().splitlines()
    return next(line for line in text if line.startswith("error: "))


def test_archives_that_are_not_what_they_should_be(tars, tmp_path, capsys):
    out = tmp_path / "out"

    def fails(train: pathlib.Path, val: pathlib.Path) -> str:
        flags = [f"--train_tar={train}", f"--val_tar={val}", f"--out={out}", "--num_processes=1"]
        return failure(capsys, "imagenet2012", *flags)

    train, val, other = tars / "train.tar", tars / "val.tar", tars / "other.tar"
    assert f"{other} does not exist" in fails(other, val)
    assert f"{tars} is a folder, not a tar file" in fails(train, tars)
    assert "not what was expected: a tar (or a folder) with one tar per class" in fails(val, val)
    assert "is not ILSVRC2012_img_val.tar" in fails(train, train)
    other.write_text("no tar at all, but longer than one block: " + 600 * "x")
    assert f"{other} is not a tar file" in fails(other, val)
    whole = val.read_bytes()
    for size in (len(whole) // 2, 1536, len(whole) // 512 // 2 * 512):
        other.write_bytes(whole[:size])
        assert f"{other} is truncated" in fails(train, other)
    # 512 bytes of zeros end a tar, 1024 are usual, and Python fills up to 10,240: cut off all of them
    other.write_bytes(whole.rstrip(b"\0")[: len(whole) // 512 * 512])
    assert "truncated" in fails(train, other)
    other.write_bytes(train.read_bytes()[:-30_000])
    assert f"{other} is truncated" in fails(other, val)
    inner = tar_of(class_files(COUNTS)["n01"])
    other.write_bytes(tar_of({"n01.tar": inner[: len(inner) // 2]}))
    paths = (f"--train_tar={other}", f"--val_tar={val}", f"--out={out}")
    assert f"n01.tar in {other} is truncated" in failure(capsys, "imagenet2012", *paths, "--partial")
    other.write_bytes(class_tar_of_tars({"n01": 1, "n03": 1}))
    assert f"{other} has 2 of the 3 classes" in fails(other, val)
    other.write_bytes(class_tar_of_tars({"n01": 1, "x1": 1}))
    assert "has 1 class(es) that ImageNet-1K has not, the first 'x1'" in fails(other, val)
    other.write_bytes(tar_of({"n01.tar": inner, "again/n01.tar": inner, "n03.tar": inner}))
    assert f"{other} has n01.tar more than once" in fails(other, val)
    other.write_bytes(tar_of({"n01.tar": tar_of({"notes.txt": b""}), "n02.tar": b"", "n03.tar": b""}))
    assert "n01.tar" in fails(other, val)
    other.write_bytes(validation_tar(5))
    assert f"{other} has 5 of the 6 images" in fails(train, other)
    other.write_bytes(validation_tar(7))
    assert "it holds 'ILSVRC2012_val_00000007.JPEG'" in fails(train, other)
    assert not out.exists()


def header(name: str, num_bytes: int, kind: bytes = tarfile.REGTYPE, **fields: str) -> bytes:
    """The header of a member of a tar; a size that octal digits cannot hold is written as a binary number."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.pax_headers = num_bytes, kind, fields
    return info.tobuf(tarfile.PAX_FORMAT if fields else tarfile.GNU_FORMAT)


def sparse_header(extended: bool) -> bytes:
    """Of GNU's old form, with a map of one entry."""
    block = bytearray(header("n01_1.JPEG", 512, tarfile.GNUTYPE_SPARSE))
    block[386:410], block[482], block[483:495] = b"00000000000\x0000000001000\0", extended, b"00000001000\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


GOOD = tar_of({"n01_0.JPEG": jpeg(0)}).rstrip(b"\0") + bytes(-len(tar_of({"n01_0.JPEG": jpeg(0)}).rstrip(b"\0")) % 512)
BAD_TARS = {
    "negative size": header("n01_1.JPEG", -512),
    "negative pax size": header("n01_1.JPEG", 0, size="-512"),
    "size of 2^60": header("n01_1.JPEG", 1 << 60),
    "size of 2^63": header("n01_1.JPEG", (1 << 63) + 512),
    "pax size of 2^60": header("n01_1.JPEG", 0, size=str(1 << 60)),
    "pax size that is no number": header("n01_1.JPEG", 0, size="many"),
    "pax header of 2^60": header("n01_1.JPEG", 1 << 60, tarfile.XHDTYPE),
    "pax header of negative size": header("n01_1.JPEG", -512, tarfile.XHDTYPE),
    "long name of 2^60": header("n01_1.JPEG", 1 << 60, tarfile.GNUTYPE_LONGNAME),
    "5,000 headers for one member": header("n01_1.JPEG", 0, tarfile.XHDTYPE) * 5000,
    "sparse": sparse_header(extended=False) + bytes(512),
    "sparse map without an end": sparse_header(extended=True),
    "pax sparse map": header("n01_1.JPEG", 0, tarfile.REGTYPE, **{"GNU.sparse.size": "9", "GNU.sparse.map": "0,x"}),
    "pax sparse 1.0": header("n01_1.JPEG", 0, tarfile.REGTYPE, **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    + b"9\n" * 256,
}


@pytest.mark.parametrize("bad", BAD_TARS.values(), ids=BAD_TARS)
@pytest.mark.parametrize("end", [bytes(1024), b""], ids=["ended", "cut"])
def test_a_damaged_tar_is_refused_at_once(tmp_path, bad, end):
    (tmp_path / "n01.tar").write_bytes(GOOD + bad + end)
    started_s = time.monotonic()
    with pytest.raises(UserError, match=rf"{tmp_path}/n01.tar (cannot be read at or|is truncated)"):
        list_tar(str(tmp_path / "n01.tar"))
    assert time.monotonic() - started_s < 30


def test_images_that_are_twice_in_an_archive_are_refused(tars, tmp_path, capsys):
    flags = ["imagenet2012", f"--val_tar={tars / 'val.tar'}", f"--train_tar={tars / 'train.tar'}", "--num_processes=1"]
    flags += ["--partial", f"--out={tmp_path / 'out'}"]
    images = {f"ILSVRC2012_val_{i:08}.JPEG": jpeg(i) for i in range(1, 6)}  # without number 6
    (tars / "val.tar").write_bytes(tar_of(images | {"again/ILSVRC2012_val_00000002.JPEG": jpeg(2)}))
    assert "1 image(s) more than once: ILSVRC2012_val_00000002.JPEG" in failure(capsys, *flags)
    (tars / "val.tar").write_bytes(tar_of(images | {"ILSVRC2012_val_00000002.png": jpeg(2)}))
    assert "val.tar has the number of an image more than once" in failure(capsys, *flags)
    (tars / "val.tar").write_bytes(validation_tar(6))
    twice = tar_of({"n01_1.JPEG": jpeg(1), "n01_2.JPEG": jpeg(2), "./n01_1.JPEG": jpeg(1)})
    (tars / "train.tar").write_bytes(tar_of({"n01.tar": twice}))
    assert "n01.tar in " in failure(capsys, *flags)
    assert "1 image(s) more than once: n01_1.JPEG" in failure(capsys, *flags)


def test_hidden_files_of_a_mac_are_no_class_tars(tars, tmp_path, capsys):
    inner = {f"{name}.tar": tar_of({f"._{name}_0.JPEG": b"x", **files}) for name, files in class_files(COUNTS).items()}
    (tars / "train.tar").write_bytes(tar_of({"._n01.tar": b"Mac OS X", **inner}))
    assert prepare_2012(tars, tmp_path / "out") == 0
    assert "1 left out that are hidden" in capsys.readouterr().err
    assert len(open_source("imagenet2012", "train", data_dir=str(tmp_path / "out"))) == 15


def test_all_that_is_wrong_with_the_paths_is_told_at_once(tmp_path, capsys, monkeypatch):
    """Before archives are listed, which takes minutes to hours at their size."""
    monkeypatch.setattr("resnext_jax.data.prepare.__main__.make_job", None)  # cannot be called
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    flags = [f"--val_tar={tmp_path / 'v.tar'}", f"--out={tmp_path / 'mine'}", "--images_per_shard=0"]
    for name, *more in (
        ("imagenet2012", f"--train_tar={tmp_path / 't.tar'}"),
        ("imagenet5k", f"--full={tmp_path / 't.tar'}", f"--class_list={tmp_path / 'list'}"),
    ):
        capsys.readouterr()
        assert main([name, *more, *flags, "--num_processes=1"]) == 2
        text = capsys.readouterr().err
        assert "--images_per_shard=0 must be 1 or more" in text
        assert f"{tmp_path / 't.tar'} does not exist" in text
        assert f"{tmp_path / 'v.tar'} does not exist" in text
        assert (f"{tmp_path / 'list'} does not exist" in text) == (name == "imagenet5k")
        assert f"{tmp_path / 'mine'} is not empty (it holds thesis.tex)" in text
    assert main(["folder", f"--dir={tmp_path / 'nowhere'}", f"--out={tmp_path / 'mine'}"]) == 2
    text = capsys.readouterr().err
    assert f"{tmp_path / 'nowhere'} does not exist" in text
    assert "thesis.tex" in text
    assert main(["folder", f"--dir={tmp_path}", f"--out={tmp_path / 'mine' / 'thesis.tex'}"]) == 2
    assert "thesis.tex is a file" in capsys.readouterr().err


def test_a_directory_that_holds_something_else(tars, tmp_path, capsys):
    train, val = f"--train_tar={tars / 'train.tar'}", f"--val_tar={tars / 'val.tar'}"
    flags = ["imagenet2012", train, val, "--num_processes=1"]
    assert main([*flags, f"--out={tmp_path / 'out'}"]) == 0
    text = failure(capsys, *flags, f"--out={tmp_path / 'out'}", "--short_side_px=20")
    assert "holds another preparation (short_side_px None there, 20 now)" in text
    (tmp_path / "file").write_text("")
    assert "cannot be written to" in failure(capsys, *flags, f"--out={tmp_path / 'file' / 'out'}")


def test_an_image_that_cannot_be_read_is_named(tmp_path, capsys):
    write_folders(tmp_path, "train", {"a": 3, "b": 3})
    broken = tmp_path / "train" / "a" / "001.JPEG"
    broken.write_bytes(broken.read_bytes()[:-200])
    flags = folder_flags(tmp_path)
    text = failure(capsys, *flags)
    assert "a/001.JPEG is not a readable image" in text
    assert "--on_bad_image=skip" in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished.json"]
    assert main([*flags, "--on_bad_image=skip"]) == 0
    assert "1 images could not be read and were left out" in capsys.readouterr().out
    source = open_source("folder", "train", data_dir=str(tmp_path / "out"))
    assert [source[i].name for i in range(5)] == ["a/000.JPEG", "a/002.JPEG", "b/000.JPEG", "b/001.JPEG", "b/002.JPEG"]
    assert source.all_labels().tolist() == [0, 0, 1, 1, 1]


def test_folders_that_do_not_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = ["folder", "--dir=~", f"--out={tmp_path / 'out'}", "--num_processes=1"]
    assert f"{tmp_path} has neither {tmp_path}/train nor" in failure(capsys, *flags)
    write_folders(tmp_path, "train", {"a": 1})
    write_folders(tmp_path, "val", {"b": 1})
    assert "val are not in" in failure(capsys, *flags)
    (tmp_path / "train" / "b").mkdir()
    assert "train/b has no image file" in failure(capsys, *flags)


def test_a_class_that_one_split_lacks_is_refused(tmp_path, capsys):
    """As when the folders are read as they are."""
    write_folders(tmp_path, "train", {"a": 1, "b": 1})
    write_folders(tmp_path, "val", {"a": 1})
    assert f"1 class folder(s) of {tmp_path}/train are not in {tmp_path}/val: b" in failure(
        capsys, *folder_flags(tmp_path)
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("split", "promised"),
    [("train", "out has no validation split. Training evaluates on them"), ("val", "Evaluate with --mode=evaluate")],
)
def test_the_command_that_is_printed_last_can_be_run(tmp_path, capsys, split, promised):
    write_folders(tmp_path, split, {"a": 2})
    assert main(folder_flags(tmp_path)) == 0
    text, note = capsys.readouterr()
    assert promised in text.splitlines()[-1]
    assert "Train with" not in text
    assert ("has no validation images" in note) == (split == "train")


def test_class_folders_that_lie_too_high_are_told_of(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert f"{tmp_path} has 2 other folder(s): a, b. If they are the classes" in failure(
        capsys, *folder_flags(tmp_path)
    )


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_what_is_finished(tmp_path):
    """The whole command; for the disk stands a limit on the size of a file, which is met in the middle of a shard."""
    write_folders(tmp_path, "train", {"a": 30, "b": 30}, width=300, height=200)
    Image.fromarray(PHOTOS[0]).save(tmp_path / "train" / "a" / "large.png")  # makes one shard larger than the others
    command = command_of(tmp_path, "--num_processes=1", "--images_per_shard=15")
    subprocess.run([*command, f"--out={tmp_path / 'whole'}"], capture_output=True, check=True)
    sizes = sorted(path.stat().st_size for path in (tmp_path / "whole").glob("*.array_record"))
    assert sizes[-2] < sizes[-1]
    out = tmp_path / "out"
    limit = (sizes[-1] + sizes[-2]) // 2
    # Limited by a process in between: nothing may be forked where JAX has threads.
    code = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    code += "os.execv(sys.executable, sys.argv[1:])"
    limited = [sys.executable, "-c", code, *command, f"--out={out}"]
    full = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert full.returncode == 2
    assert "could not be written: " in full.stderr
    assert "run the same command again" in full.stderr
    assert "Traceback" not in full.stderr
    finished = {name: value for name, value in contents(out).items() if name != "unfinished.json"}
    assert finished.items() < contents(tmp_path / "whole").items()
    assert "manifest.json" not in finished
    with pytest.raises(UserError, match="is not complete"):
        open_source("records", "train", data_dir=str(out))
    again = subprocess.run([*command, f"--out={out}"], capture_output=True, text=True, check=True)
    assert f"{len(finished)} of 4 shards are finished already" in again.stdout
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("file", ["unfinished.json", "train.labels", "manifest.json"])
def test_a_disk_that_is_full_for_the_last_files(tmp_path, capsys, monkeypatch, file):
    write_folders(tmp_path, "train", {"a": 2})
    flags = folder_flags(tmp_path)
    whole = type(epath.Path()).write_bytes

    def full(path, data):
        if file not in path.name:
            return whole(path, data)
        whole(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path()), "write_bytes", full)
        assert f"{file} could not be written: No space left on device. Free disk space" in failure(capsys, *flags)
    assert not {file, "manifest.json"} & contents(tmp_path / "out").keys()
    assert not list((tmp_path / "out").glob(".*"))
    assert main(flags) == 0
    assert len(open_source("folder", "train", data_dir=str(tmp_path / "out"))) == 2


def test_a_full_disk_leaves_no_shard(tmp_path):
    # /dev/full takes nothing, as a full disk
    name = "train-00000-of-00001.array_record"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".{name}.tmp-{os.getpid()}").symlink_to("/dev/full")
    (tmp_path / "0.JPEG").write_bytes(jpeg(0, 500, 375))
    entries = (Entry(str(tmp_path), -1, -1, 0, "0.JPEG"),) * 100
    with pytest.raises(UserError, match=r"could not be written: .*No space left on device"):
        shards.write_shard(shards.ShardTask(str(tmp_path / "out"), name, entries, None, skip_bad=False))
    assert not list((tmp_path / "out").iterdir())
