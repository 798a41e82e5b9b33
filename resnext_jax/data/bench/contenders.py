"""The input pipelines that are timed: from files to uint8 batches of random-sized crops, as each is commonly written.

Each runs in a process of its own, on the same cores, and only while it is its turn.
"""

import contextlib
import functools
import importlib
import importlib.util
import math
import multiprocessing
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from resnext_jax.data import decode, partial, resize
from resnext_jax.data.crops import Crop
from resnext_jax.data.folder import FolderSource, class_folders
from resnext_jax.data.pipeline import train_batches
from resnext_jax.errors import UserError, raise_all

SIZE_PX = 224
ASPECTS, AREAS = (decode.MIN_ASPECT, decode.MAX_ASPECT), (decode.MIN_AREA_FRACTION, 1.0)
BATCHES_IN_WAITING = 6  # batches that may have been prepared between two turns
PAUSE_S = 0.5  # until such preparations have come to rest

# name -> packages, and how they are installed
NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "ours": ((), ""),
    "tf_data": (("tensorflow",), "pip install tensorflow"),
    "tf_data_filtered": (("tensorflow",), "pip install tensorflow"),
    "torch": (("torch", "torchvision"), "pip install torch torchvision"),
}


def absent(name: str) -> str | None:
    """Return what to install for a contender, or None if it can run."""
    packages, command = NEEDS[name]
    return None if all(importlib.util.find_spec(package) for package in packages) else command


def ours(folder: str, num_cores: int, batch_size: int) -> tuple[str, Iterator[np.ndarray]]:
    """`data.pipeline.train_batches` of a folder of class folders."""
    source, crop = FolderSource("folder", folder, class_folders(folder)), Crop("random_sized", SIZE_PX)
    batches = train_batches(source, crop, batch_size=batch_size, seed=0, steps=range(10**9), num_threads=num_cores)
    part = "what the crop needs" if partial.LIBRARY else "whole images (what the crop needs: pip install turbojpeg)"
    scaled = "compiled" if resize.COMPILED else "by Pillow (no C compiler was found at the installation)"
    how = f"libjpeg-turbo, {part}; bicubic, filtered, {scaled}; {num_cores} thread(s)"
    return how, (batch.image for batch in batches)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what TensorFlow's libraries write to the standard error about missing GPUs."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def tf_data(
    folder: str, num_cores: int, batch_size: int, *, filtered: bool = False
) -> tuple[str, Iterator[np.ndarray]]:
    """tf.data as in the TensorFlow models: only the crop is decoded, `tf.image.resize`."""
    with _quiet():
        tf: Any = importlib.import_module("tensorflow")
        tf.config.set_visible_devices([], "GPU")

    def image(path: Any) -> Any:
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.zeros([0, 0, 4]),
            area_range=AREAS,
            aspect_ratio_range=ASPECTS,
            max_attempts=decode.NUM_TRIES,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        crop = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        crop = tf.image.resize(crop, (SIZE_PX, SIZE_PX), "bicubic", antialias=filtered)
        return tf.cast(tf.clip_by_value(tf.round(crop), 0, 255), tf.uint8)

    paths = tf.data.Dataset.list_files(f"{folder}/*/*.jpg", shuffle=False).cache()
    batches = paths.shuffle(1000).repeat().map(image, num_parallel_calls=num_cores).batch(batch_size).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = num_cores
    options.threading.max_intra_op_parallelism = 1
    bicubic = "bicubic, antialias" if filtered else "bicubic of 4 x 4 points"
    how = f"TensorFlow {tf.__version__}, decode_and_crop_jpeg, {bicubic}; {num_cores} thread(s)"
    return how, batches.with_options(options).as_numpy_iterator()


def torch(folder: str, num_cores: int, batch_size: int) -> tuple[str, Iterator[np.ndarray]]:
    """PyTorch's DataLoader with torchvision's ImageFolder and RandomResizedCrop, one worker per core."""
    pytorch: Any = importlib.import_module("torch")
    try:
        torchvision: Any = importlib.import_module("torchvision")
    except RuntimeError:
        # Built for another torch it lacks its compiled operators: none is used, but importing it looks these up.
        operators = pytorch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision = importlib.import_module("torchvision")
        torchvision.declared_operators = operators  # they vanish with this object
    transforms: Any = importlib.import_module("torchvision.transforms")
    datasets: Any = importlib.import_module("torchvision.datasets")
    bicubic = transforms.InterpolationMode.BICUBIC
    crop = transforms.RandomResizedCrop(SIZE_PX, scale=AREAS, ratio=ASPECTS, interpolation=bicubic)
    images = datasets.ImageFolder(folder, transforms.Compose([crop, transforms.PILToTensor()]))
    endless = pytorch.utils.data.RandomSampler(images, replacement=True, num_samples=10**7)
    start = "fork" if num_cores else None
    loader = pytorch.utils.data.DataLoader(
        images, batch_size, sampler=endless, num_workers=num_cores, multiprocessing_context=start
    )
    how = f"PyTorch {pytorch.__version__}, DataLoader, RandomResizedCrop of Pillow's bicubic; {num_cores} worker(s)"
    return how, (batch.numpy().transpose(0, 2, 3, 1) for batch, _ in loader)


CONTENDERS: dict[str, Callable[[str, int, int], tuple[str, Iterator[np.ndarray]]]] = {
    "ours": ours,
    "tf_data": tf_data,
    "tf_data_filtered": functools.partial(tf_data, filtered=True),  # a filter of the same kind as ours
    "torch": torch,
}


# ---- turns


def processor_s() -> float:
    """Return the processor time of this process and its workers; unlike the clock, it leaves out other work."""
    ticks = 0
    for worker in multiprocessing.active_children():
        with contextlib.suppress(OSError):  # a system without /proc: only PyTorch has workers, and they flatter it
            # user and system time, behind the command, which may contain spaces
            fields = pathlib.Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + (ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0)


def _serve(pipe: Any, name: str, folder: str, num_cores: int, batch_size: int) -> None:
    """Run one contender: send how it runs, then for every turn, of the seconds received, images per `processor_s`."""
    if hasattr(os, "sched_setaffinity"):  # this process and its children, before any library counts the cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-num_cores:])
    try:
        how, batches = CONTENDERS[name](folder, num_cores, batch_size)
        first = next(batches)
        assert (first.shape, first.dtype) == ((batch_size, SIZE_PX, SIZE_PX, 3), np.uint8)
    except Exception as error:
        pipe.send(UserError(f"{name} cannot run here: {error!r}. Repair its installation, or remove it."))
        os._exit(1)
    pipe.send(how)
    while turn_s := pipe.recv():
        for _ in range(BATCHES_IN_WAITING):
            next(batches)
        start_s, used_s, num_images = time.perf_counter(), processor_s(), 0
        while time.perf_counter() - start_s < turn_s:
            num_images += len(next(batches))
        pipe.send(num_images / (processor_s() - used_s))
    os._exit(0)  # whatever threads and workers a library keeps


def in_turns(
    names: list[str], folder: str, *, num_cores: int, batch_size: int, repeats: int, turn_s: float
) -> tuple[dict[str, str], dict[str, list[float]]]:
    """Return how each contender runs, and its images per second of one core in each of its turns."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, rates = {}, [], {name: [] for name in names}
    try:
        for name in names:
            pipes[name], theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, name, folder, num_cores, batch_size))
            process.start()
            theirs.close()
            processes.append(process)
        how = {name: pipe.recv() for name, pipe in pipes.items()}
        raise_all([str(answer) for answer in how.values() if isinstance(answer, UserError)])
        for _ in range(repeats):
            for name, pipe in pipes.items():
                time.sleep(PAUSE_S)
                pipe.send(turn_s)
                rates[name].append(pipe.recv())
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
    assert all(math.isfinite(rate) for of in rates.values() for rate in of)
    return how, rates
