"""The networks by name: one row each, nothing else to write for a new one."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from resnext_jax.errors import UserError, raise_all, unknown
from resnext_jax.models.arch import CIFAR_STEM, SMALL_STEM, Arch, by_depth, wide_resnet
from resnext_jax.models.densenet import DenseNet, DenseNetArch
from resnext_jax.models.resnext import ResNeXt
from resnext_jax.models.vgg import Vgg, VggArch
from resnext_jax.ops.conv_choice import resolver

Row = Arch | VggArch | DenseNetArch
Network = ResNeXt | Vgg | DenseNet
NETWORKS: dict[type, type] = {Arch: ResNeXt, VggArch: Vgg, DenseNetArch: DenseNet}

ARCHS: dict[str, Row] = {
    # ResNets: the baselines of Tables 3 and 4.
    "resnet18": by_depth(18),
    "resnet34": by_depth(34),
    "resnet50": by_depth(50),
    "resnet101": by_depth(101),
    "resnet152": by_depth(152),
    # Pre-activated (He et al. 2016); Table 4 has the one of 200 layers.
    "resnet200": by_depth(200, preactivation=True),
    "preresnet18": by_depth(18, preactivation=True),
    "preresnet34": by_depth(34, preactivation=True),
    "preresnet50": by_depth(50, preactivation=True),
    "preresnet101": by_depth(101, preactivation=True),
    "preresnet152": by_depth(152, preactivation=True),
    # Without shortcuts: He et al. 2015, Figure 3; the ablation of section 5.1.
    "plain34": by_depth(34, shortcut=False),
    "plain50": by_depth(50, shortcut=False),
    # Table 3: cardinality against width at equal complexity.
    "resnext50_2x40d": by_depth(50, 2, 40),
    "resnext50_4x24d": by_depth(50, 4, 24),
    "resnext50_8x14d": by_depth(50, 8, 14),
    "resnext50_32x4d": by_depth(50, 32, 4),
    "resnext101_2x40d": by_depth(101, 2, 40),
    "resnext101_4x24d": by_depth(101, 4, 24),
    "resnext101_8x14d": by_depth(101, 8, 14),
    "resnext101_32x4d": by_depth(101, 32, 4),
    # Table 4: wider, or more paths.
    "resnet101_1x100d": by_depth(101, 1, 100),
    "resnext101_2x64d": by_depth(101, 2, 64),
    "resnext101_64x4d": by_depth(101, 64, 4),
    # Usual neighbours. The wide ones have a 3x3 of twice the channels (Zagoruyko & Komodakis 2016, WRN-50-2).
    "resnext101_32x8d": by_depth(101, 32, 8),
    "resnext101_32x16d": by_depth(101, 32, 16),
    "resnext101_32x32d": by_depth(101, 32, 32),
    "resnext101_32x48d": by_depth(101, 32, 48),
    "resnext152_32x4d": by_depth(152, 32, 4),
    "wide_resnet50_2": by_depth(50, 1, 128),
    "wide_resnet101_2": by_depth(101, 1, 128),
    # VGG and DenseNet, which the paper's introduction starts from.
    "vgg11": VggArch((1, 1, 2, 2, 2)),
    "vgg13": VggArch((2, 2, 2, 2, 2)),
    "vgg16": VggArch((2, 2, 3, 3, 3)),
    "vgg19": VggArch((2, 2, 4, 4, 4)),
    "vgg11_bn": VggArch((1, 1, 2, 2, 2), batch_norm=True),
    "vgg13_bn": VggArch((2, 2, 2, 2, 2), batch_norm=True),
    "vgg16_bn": VggArch((2, 2, 3, 3, 3), batch_norm=True),
    "vgg19_bn": VggArch((2, 2, 4, 4, 4), batch_norm=True),
    "densenet121": DenseNetArch((6, 12, 24, 16)),
    "densenet161": DenseNetArch((6, 12, 36, 24), growth=48, width=96),
    "densenet169": DenseNetArch((6, 12, 32, 32)),
    "densenet201": DenseNetArch((6, 12, 48, 32)),
    # CIFAR: Table 7, and Figure 7 from 1x64d on, more paths or wider.
    "resnet29": by_depth(29, 1, 64, "cifar"),
    "resnext29_2x64d": by_depth(29, 2, 64, "cifar"),
    "resnext29_4x64d": by_depth(29, 4, 64, "cifar"),
    "resnext29_8x64d": by_depth(29, 8, 64, "cifar"),
    "resnext29_16x64d": by_depth(29, 16, 64, "cifar"),
    "resnet29_1x128d": by_depth(29, 1, 128, "cifar"),
    "resnet29_1x256d": by_depth(29, 1, 256, "cifar"),
    "wrn28_10": wide_resnet(28, 10),
    "wrn40_8": wide_resnet(40, 8),
    "wrn16_8": wide_resnet(16, 8),
    "densenet_bc100_12": DenseNetArch((16, 16, 16), growth=12, width=24, stem=CIFAR_STEM),
    # 28 px images on a CPU: the quickstart; and the smallest that still has every part, for tests.
    "resnext20_8x4d_small": Arch("bottleneck", (2, 2, 2), 8, 4, stem=SMALL_STEM, width=16),
    "resnext11_4x2d_tiny": Arch("bottleneck", (1, 1, 1), 4, 2, stem=SMALL_STEM, width=4),
}


def select(
    name: str = "",
    *,
    family: str = "imagenet",
    depth: int = 50,
    cardinality: int = 32,
    bottleneck_width: int = 4,
    shortcut: bool = True,
    preactivation: bool = False,
    dropout: float | None = None,
    stochastic_depth: float = 0.0,
    **strange: Any,
) -> Row:
    """Return the network of a config's `model` fields; see `arch.Arch` for those that are not here.

    Args:
      name: a row of `ARCHS`; "" for the network of the next four arguments.
      family, depth, cardinality, bottleneck_width: see `by_depth`.
      dropout: replaces the row's rate, if it is set.
      strange: fields of a checkpoint that are none of these.

    Raises:
      UserError: there is no such row, depth or field, or the network does not support a setting.
    """
    problems = [f"model.{field} is no field of a network that this version knows." for field in strange]
    arch = ARCHS.get(name)
    if name and arch is None:
        problems.append(unknown("model.name", name, ARCHS, "resnext_jax.list_models() returns all."))
    elif arch is None:
        try:
            arch = by_depth(depth, cardinality, bottleneck_width, family)
        except UserError as error:
            problems += error.problems
    changes: dict[str, Any] = {} if shortcut else {"shortcut": False}
    changes |= {"preactivation": True} if preactivation else {}
    changes |= {"stochastic_depth": stochastic_depth} if stochastic_depth else {}
    problems += [
        f"model.{field}={value}: {name} has no residual blocks. Leave it at {getattr(Arch, field)}, or take a ResNet "
        "or ResNeXt."
        for field, value in changes.items()
        if arch is not None and not isinstance(arch, Arch)
    ]
    if not 0 <= stochastic_depth < 1:
        problems.append(f"model.stochastic_depth={stochastic_depth} must be in [0, 1).")
    if stochastic_depth and not shortcut:
        problems.append(
            f"model.stochastic_depth={stochastic_depth} leaves nothing of an image without a shortcut: set it to 0, or "
            "model.shortcut=True."
        )
    if dropout is not None:
        changes["dropout"] = dropout
        if not 0 <= dropout < 1:
            problems.append(f"model.dropout={dropout} must be in [0, 1).")
        if arch and not (isinstance(arch, VggArch) or (isinstance(arch, Arch) and arch.block == "basic")):
            problems.append(
                f"model.dropout={dropout}: only basic blocks (wrn28_10, resnet18, ...) and VGG have a place for "
                "dropout. Leave it unset, or take one of them."
            )
    raise_all(problems)
    assert arch is not None
    return dataclasses.replace(arch, **changes)


IMAGENET_INPUT = (224, 3, 1000)


def usual_input(arch: Row) -> tuple[int, int, int]:
    """Return (height and width, channels, classes) of a network's data: ImageNet, CIFAR-10 or Fashion-MNIST."""
    by_stem = {CIFAR_STEM: (32, 3, 10), SMALL_STEM: (28, 1, 10)}
    return IMAGENET_INPUT if isinstance(arch, VggArch) else by_stem.get(arch.stem, IMAGENET_INPUT)


DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


def build_model(
    arch: Row,
    num_classes: int,
    *,
    platform: str,
    chip: str = "",
    conv_impl: str,
    compute_dtype: str,
    bn_group_images: int,
) -> Network:
    """Return the Flax module of a network, with an algorithm chosen for every convolution.

    Args:
      arch: a result of `select`.
      platform, chip: device that the algorithms are chosen for; see `ops.conv_choice.choose`.
      conv_impl: "auto", or one algorithm for every convolution (`ops.grouped_conv.algorithm`).
      compute_dtype: "bfloat16" or "float32"; dtype of the activations.
      bn_group_images: images per batch-norm group, 0 for the whole batch.

    Raises:
      UserError: an unknown algorithm or dtype, or an algorithm that cannot compute the network's groups.
    """
    if compute_dtype not in DTYPES:
        raise UserError(unknown("compute_dtype", compute_dtype, DTYPES))
    choose_conv = resolver(conv_impl, platform, chip, arch.cardinality if isinstance(arch, Arch) else 1)
    return NETWORKS[type(arch)](arch, num_classes, choose_conv, bn_group_images, DTYPES[compute_dtype])
