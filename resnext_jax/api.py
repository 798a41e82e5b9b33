"""A network with its weights, for notebooks and for prediction: no training code, no config to write."""

import functools
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from jaxtyping import Array, Float, UInt8

from resnext_jax.checkpoint import NETWORK, locate, read_description, read_variables
from resnext_jax.data.decode import rounding_of
from resnext_jax.data.imagenet_classes import readable
from resnext_jax.data.one_image import USUAL, prepare
from resnext_jax.errors import UserError
from resnext_jax.evaluate.classify import predict_step
from resnext_jax.evaluate.describe import describe, origin_of
from resnext_jax.evaluate.export import write_exported
from resnext_jax.evaluate.predict import Prediction, predict
from resnext_jax.json_files import shown
from resnext_jax.models import zoo
from resnext_jax.models.layers import Classifier
from resnext_jax.ops.conv_choice import chip_of
from resnext_jax.ops.keys import seed_key
from resnext_jax.sharding import all_devices
from resnext_jax.types import DETECTION, PyTree

KEPT_SHAPES = 16  # of images, whose compiled programs stay in memory: megabytes each


class Net:
    """Predicts: `net(images)` gives logits, `net.features(images)` the activations of every stage.

    Images are of any size that leaves the last stage a pixel, 32 px or more for the ImageNet networks; each new size
    (and each new number of images) is compiled when it is first seen. The programs of the last KEPT_SHAPES are kept.

    Attributes:
      model: the Flax module.
      variables: `params` and `batch_stats`.
      config: the resolved config that it was trained with, or the arguments of `build`; `config["data"]` has the
        preprocessing that belongs to the weights.
      class_names: one per class, in label order; English names for ImageNet's WordNet ids.
      origin: where the weights come from, and their step.
    """

    def __init__(
        self,
        model: zoo.Network,
        variables: PyTree,
        config: dict[str, Any],
        class_names: tuple[str, ...],
        origin: str = "fresh weights",
    ):
        self.model, self.variables, self.config, self.class_names = model, variables, config, class_names
        self.origin = origin
        step = partial(predict_step, model=model, mean=config["data"]["mean"], std=config["data"]["std"])
        # A function of its own for each shape: with it go all programs that JAX keeps for it.
        self._step = functools.lru_cache(KEPT_SHAPES)(lambda shape, dtype, **more: jax.jit(partial(step, **more)))

    def __repr__(self) -> str:
        return describe(self.config, self.class_names, self.origin)

    def summary(self) -> None:
        """Print the table of layers: name, shape, type and size of every parameter, and their sum."""
        print(parameter_overview.get_parameter_overview(self.variables["params"], include_stats=False))

    def predict(
        self, images: str | os.PathLike | np.ndarray | Sequence[str | os.PathLike | np.ndarray], *, top: int = 5
    ) -> list[list[Prediction]]:
        """Return the most probable classes of each image, the first one first: names and probabilities.

        Args:
          images: one or a list of paths and decoded uint8 images (height, width, *channel) of any size, or an array of
            images of one size. They are resized and cropped as in evaluation.
          top: number of classes; all if there are fewer.

        Raises:
          UserError: a file cannot be read or is no image, another shape or dtype, or `top` is less than 1.
        """
        tools = {"preprocess": self.preprocess, "logits_of": self, "class_names": self.class_names}
        return predict(images, top=top, **tools)

    def __call__(self, images: Array | np.ndarray) -> Float[Array, "batch classes"]:
        """Return float32 logits.

        Args:
          images: (batch, height, width, channel) on the scale 0..255, uint8 or float.

        Raises:
          UserError: another number of dimensions or channels, no image, or no numbers.
        """
        images = self._checked(images)
        return self._step(images.shape, images.dtype)(self.variables, images)

    def features(self, images: Array | np.ndarray) -> dict[str, Array]:
        """Return activations by name: `stage1` (the stem) to the last stage, `pooled` (batch, channel) and `logits`.

        ImageNet networks have five stages, with strides 2 (the stem), 4, 8, 16 and 32.
        """
        images = self._checked(images)
        logits, activations = self._step(images.shape, images.dtype, features=True)(self.variables, images)
        stages = sorted((name for name in activations if name.startswith("stage")), key=lambda name: int(name[5:]))
        others = [name for name in activations if name not in stages]  # JAX sorts by name
        return {name: activations[name] for name in (*stages, *others)} | {"logits": logits}

    def detect(self, images: Any) -> Any:
        """Raise UserError: a classifier finds no objects."""
        raise UserError(
            "this is a classifier, and it finds no objects: load a detector, or train one from this checkpoint with "
            "python main.py --config=configs/detection_resnext50_32x4d.py --config.init_from=DIR --config.data.dir=COCO"
        )

    def with_head(self, classes: int | Sequence[str], *, seed: int = 0) -> "Net":
        """Return the same backbone with a classifier of fresh weights.

        Args:
          classes: number of classes, or their names in label order.
          seed: seed of the classifier's weights.

        Raises:
          UserError: less than one class, or names that are not all different.
        """
        names = _numbered(classes) if isinstance(classes, int) else classes
        if isinstance(names, str) or not names or len(set(names)) != len(names):
            raise UserError(
                f"with_head({shown(classes)}): give the number of classes, 1 or more, or a list of their names."
            )
        old = self.variables["params"]["classifier"]["kernel"]
        head = Classifier(len(names)).init(seed_key(seed), jnp.zeros((1, old.shape[0])))["params"]
        variables = {**self.variables, "params": {**self.variables["params"], "classifier": head}}
        origin = f"{self.origin}; a classifier of fresh weights"
        return Net(self.model.clone(num_classes=len(names)), variables, self.config, tuple(names), origin)

    def export(
        self,
        path: str,
        *,
        platforms: Sequence[str] = (),
        batch_size: int | None = None,
        image_size_px: int | None = None,
    ) -> None:
        """Write a file that serves logits without this package:

            from jax import export
            served = export.deserialize(bytearray(open(PATH, "rb").read()))
            logits = served.call(images)  # uint8 (batch, size, size, channel) on the scale 0..255

        Weights, normalization and network are in it; resizing and cropping are not.

        Args:
          path: new file.
          platforms: one or more of cpu, cuda, rocm and tpu, by default this process's. Convolutions are chosen for the
            first.
          batch_size: images in a request; None allows any number.
          image_size_px: height and width of the images; by default the size that the weights were trained for.

        Raises:
          UserError: an unknown platform, a size that is not positive, or the file cannot be written.
        """
        parts = self.model, self.variables, self.config["data"]
        options = {"platforms": platforms, "batch_size": batch_size, "image_size_px": image_size_px}
        write_exported(path, *parts, **options)

    def preprocess(self, image: np.ndarray) -> UInt8[np.ndarray, "1 size size channel"]:
        """Return one decoded uint8 image (height, width, *channel) as a batch of one, prepared as in evaluation.

        RGB and gray images are converted to the channels of the network.

        Raises:
          UserError: another shape or dtype.
        """
        return prepare(image, self.config["data"])

    def _checked(self, images: Array | np.ndarray) -> Array:
        images = jnp.asarray(images)
        channels = len(self.config["data"]["mean"])
        if images.ndim != 4 or images.shape[-1] != channels:
            raise UserError(
                f"images of shape {tuple(images.shape)}: this network takes (batch, height, width, {channels}) on the "
                "scale 0..255. Add a batch dimension (images[None]), or bring the channels last."
            )
        if 0 in images.shape:
            raise UserError(f"images of shape {tuple(images.shape)}: there is nothing in them. Give one image or more.")
        return images


def load(path: str, *, raw: bool = False) -> Any:
    """Return the network of a checkpoint: a `Net`, or the `detection.net.DetectionNet` of a detector.

    Args:
      path: a workdir, its `checkpoints` directory (then the newest), or one checkpoint.
      raw: take the weights of the last step, not their moving averages (`config.ema_decay`).

    Raises:
      UserError: there is no complete checkpoint, or it is damaged.
    """
    all_devices()  # or say what is wrong with them
    checkpoint = locate(path)
    if read_description(checkpoint)["config"].get("task") == DETECTION:
        from resnext_jax.detection.net import load_detector

        return load_detector(path)
    description = read_description(checkpoint, NETWORK)
    config, class_names = description["config"], tuple(description["dataset"]["class_names"])
    data = config["data"]
    if not data["mean"] or len(data["mean"]) != len(data["std"]) or min(data["std"]) <= 0:
        raise UserError(
            f"the checkpoint {checkpoint} has data.mean={data['mean']} and data.std={data['std']}: both need one entry "
            "per channel, and those of data.std must be positive. Give another checkpoint."
        )
    config["data"]["rounding"] = rounding_of(description)
    model = zoo.build_model(
        zoo.select(**config["model"]),
        len(class_names),
        platform=jax.default_backend(),
        chip=chip_of(jax.local_devices()[0].device_kind),
        conv_impl=config["conv_impl"],
        compute_dtype=config["compute_dtype"],
        bn_group_images=config["bn_group_images"],
    )
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    images = jax.ShapeDtypeStruct((1, data["image_size_px"], data["image_size_px"], len(data["mean"])), "float32")
    wanted = jax.eval_shape(partial(model.init, train=False), seed_key(0), images)
    variables = read_variables(checkpoint, sharding, raw=raw, wanted=wanted, advice="Give another checkpoint.")
    return Net(model, variables, config, readable(class_names), origin_of(checkpoint, description, raw))


def build(name: str, *, num_classes: int | None = None, seed: int = 0, compute_dtype: str = "float32") -> Net:
    """Return a network of the zoo with fresh weights, and the preprocessing of its usual data set.

    That is ImageNet, CIFAR-10 for the networks with a CIFAR stem, and Fashion-MNIST (28 px, gray) for the small ones of
    the quickstart and the tests.

    Args:
      name: one of `list_models`.
      num_classes: number of classes; by default 1000 or 10, as in that data set.
      compute_dtype: "float32" or "bfloat16".

    Raises:
      UserError: there is no such row (the close matches are named), or less than one class.
    """
    all_devices()
    arch = zoo.select(name)
    size_px, num_channels, usual_classes = zoo.usual_input(arch)
    num_classes = usual_classes if num_classes is None else num_classes
    if num_classes < 1:
        raise UserError(f"num_classes={num_classes} must be 1 or more.")
    model = zoo.build_model(
        arch,
        num_classes,
        platform=jax.default_backend(),
        chip=chip_of(jax.local_devices()[0].device_kind),
        conv_impl="auto",
        compute_dtype=compute_dtype,
        bn_group_images=32,
    )
    images = jnp.zeros((1, 64, 64, num_channels))
    variables = jax.jit(partial(model.init, train=False))(seed_key(seed), images)
    config = {"model": {"name": name}, "data": dict(USUAL[size_px])}
    return Net(model, variables, config, tuple(_numbered(num_classes)))


def list_models() -> list[str]:
    """Return the names that `build` and `config.model.name` take."""
    return list(zoo.ARCHS)


def _numbered(num_classes: int) -> list[str]:
    return [f"class {index}" for index in range(num_classes)]
