"""Pictures of an evaluation, in the workdir and in TensorBoard."""

import io
from collections.abc import Mapping

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from resnext_jax.files import in_bucket, write_whole
from resnext_jax.runtime.writer import write_images

DIRECTORY = "pictures"


def write(workdir: str, step: int, pictures: Mapping[str, UInt8[np.ndarray, "height width 3"]]) -> None:
    """Write pictures to `workdir/pictures`, over those of the evaluation before, and to TensorBoard.

    A bucket gets no pictures for TensorBoard: its event files are copied from elsewhere (`runtime.writer`).

    Args:
      step: step of the evaluation.
      pictures: images by file name.
    """
    directory = epath.Path(workdir) / DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    for name, image in pictures.items():
        content = io.BytesIO()
        Image.fromarray(image).save(content, "PNG")
        write_whole(directory / name, content.getvalue())
    if pictures and not in_bucket(workdir):
        write_images(workdir, step, {f"detections/{name}": image for name, image in pictures.items()})
