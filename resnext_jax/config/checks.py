"""Every check of a config. They run before anything is built; each problem is one sentence that says what to change."""

import math

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from resnext_jax import optim, sharding
from resnext_jax.data.crops import CROPS
from resnext_jax.data.policies import MAX_MAGNITUDE, POLICIES
from resnext_jax.data.resize import FILTERS
from resnext_jax.data.sources import ON_BAD_IMAGE, SOURCES
from resnext_jax.errors import UserError, unknown
from resnext_jax.evaluate.protocols import CANDIDATES, PROTOCOLS
from resnext_jax.models import zoo
from resnext_jax.ops import conv_choice
from resnext_jax.ops.loss import LOSSES

NONFINITE_POLICIES = ("stop", "skip")


def evaluation_problems(config: ConfigDict, num_devices: int) -> list[str]:
    """Return what is wrong with the fields of evaluation on this many devices, one sentence each."""
    data = config.data
    lines = sharding.check_batch_size("evaluate.batch_size", config.evaluate.batch_size, num_devices)
    # A training run checks them too: it would write wrong ones into its checkpoints.
    for name, value, allowed in (
        ("data set", data.name, SOURCES),
        ("data.interpolation", data.interpolation, FILTERS),
        ("protocol", config.protocol, PROTOCOLS),
        ("evaluate.classes", config.evaluate.classes, CANDIDATES),
    ):
        if value not in allowed:
            lines.append(unknown(name, value, allowed))
    if data.crop not in CROPS:
        lines.append(unknown("data.crop", data.crop, CROPS))
    elif data.crop != "none" and data.resize_px < data.image_size_px:
        lines.append(
            f"data.resize_px={data.resize_px} is smaller than the centre crop of data.image_size_px="
            f"{data.image_size_px}: 8/7 of the crop is usual, --config.data.resize_px={data.image_size_px * 8 // 7}."
        )
    if not data.mean or len(data.mean) != len(data.std) or min(data.std) <= 0:
        lines.append(
            f"data.mean={tuple(data.mean)} and data.std={tuple(data.std)} must have one entry per channel, and those "
            "of data.std must be positive."
        )
    elif any(mean < 0 or mean > 255 for mean in data.mean):
        lines.append(f"data.mean={tuple(data.mean)} must be in [0, 255], the levels of images.")
    elif 0 < max(data.mean) <= 1 or max(data.std) < 1:
        lines.append(
            f"data.mean={tuple(data.mean)} and data.std={tuple(data.std)} look like those of images from 0 to 1, and "
            "ours have levels from 0 to 255: multiply both by 255, as 255 * 0.485 = 123.675."
        )
    ranges = {
        "data.image_size_px": (data.image_size_px, data.image_size_px > 0, "positive"),
        "data.resize_px": (data.resize_px, data.resize_px > 0, "positive"),
        "data.num_threads": (data.num_threads, data.num_threads >= 0, "0 or more"),
    }
    return lines + _not_finite(config) + _out_of_range(ranges)


def network_problems(config: ConfigDict) -> list[str]:
    """Return what is wrong with the fields of the network, one sentence each."""
    try:
        zoo.select(**config.model)
        lines = []
    except UserError as error:
        lines = list(error.problems)
    if config.compute_dtype not in zoo.DTYPES:
        lines.append(unknown("compute_dtype", config.compute_dtype, zoo.DTYPES))
    return lines + conv_choice.problems_of(config.conv_impl)


def protocol_problems(config: ConfigDict) -> list[str]:
    """Return what is wrong with the fields of a protocol together, one sentence each."""
    problems, data, crop = [], config.data, config.data.crop
    if config.protocol in PROTOCOLS and config.protocol != "center" and crop == "none":
        problems.append(
            f"protocol={config.protocol!r} cuts its views from larger images, and those of {data.name!r} are taken as "
            f"they are (data.crop='none'): add --config.data.crop=resize, and --config.data.resize_px={data.resize_px} "
            "or more."
        )
    if config.evaluate.real_labels and config.evaluate.classes != "all":
        problems.append("evaluate.real_labels are for evaluate.classes='all': leave one of the two out.")
    return problems


def training_problems(config: ConfigDict, num_devices: int, num_processes: int = 1) -> list[str]:
    """Return what is wrong with the fields of training on this many devices, one sentence each."""
    lines = sharding.check_batch_size("batch_size", config.batch_size, num_devices)
    batch_size, group, parts = config.batch_size, config.bn_group_images, config.accumulation_steps
    if group < 0 or (group and batch_size % group):
        lines.append(
            f"bn_group_images={group} does not divide batch_size={batch_size}: batch-norm statistics are taken over "
            "whole groups of images. Take a divisor, or 0 for the whole batch."
        )
    elif parts < 1 or (parts > 1 and (group == 0 or (batch_size // group) % parts)):
        groups = f"{batch_size // group} batch-norm groups of {group}" if group else "one batch-norm group"
        lines.append(
            f"accumulation_steps={parts} does not divide batch_size={batch_size} into whole batch-norm groups: the "
            f"batch has {groups} images. Take a divisor of the number of groups, or a smaller bn_group_images."
        )
    if config.freeze_backbone and config.init_from is None:
        lines.append(
            "freeze_backbone=True without init_from would leave the backbone as it was drawn: give the weights that it "
            "starts from with --config.init_from=DIR."
        )
    augment, schedule, every = config.augment, config.schedule, config.evaluate.every_steps
    if len(config.data.mean) != 3 and (augment.color_jitter or augment.lighting_std):
        lines.append(
            f"augment.color_jitter={augment.color_jitter} and augment.lighting_std={augment.lighting_std} are for "
            f"three channels, and data.mean has {len(config.data.mean)}: set both to 0."
        )
    if config.debug_nans and num_processes > 1:
        lines.append(
            f"debug_nans=True looks at one process, and there are {num_processes}: start one alone, on a copy of the "
            "workdir."
        )
    if config.on_nonfinite not in NONFINITE_POLICIES:
        lines.append(unknown("on_nonfinite", config.on_nonfinite, NONFINITE_POLICIES))
    if schedule.name not in optim.SCHEDULES:
        lines.append(unknown("schedule.name", schedule.name, optim.SCHEDULES))
    traced = list(config.watch.profile_steps)
    whole = all(step == int(step) and step > 0 for step in traced)
    boundaries = list(schedule.boundaries_steps or schedule.boundaries_epochs)
    finite_epochs = 0 < config.num_epochs < float("inf")
    ranges = {
        # A key is made of 32 bits; a larger seed would not be another one.
        "seed": (config.seed, 0 <= config.seed < 2**32, "in [0, 2**32)"),
        "learning_rate": (config.learning_rate, config.learning_rate > 0, "positive"),
        "momentum": (config.momentum, 0 <= config.momentum < 1, "in [0, 1)"),
        "weight_decay": (config.weight_decay, config.weight_decay >= 0, "0 or more"),
        "label_smoothing": (config.label_smoothing, 0 <= config.label_smoothing < 1, "in [0, 1)"),
        "num_epochs": (config.num_epochs, finite_epochs, "positive and finite"),
        "num_steps": (config.num_steps, config.num_steps is None or config.num_steps > 0, "positive"),
        "schedule.factor": (schedule.factor, 0 < schedule.factor <= 1, "in (0, 1]"),
        "schedule.warmup_epochs": (schedule.warmup_epochs, schedule.warmup_epochs >= 0, "0 or more"),
        "ema_decay": (config.ema_decay, 0 <= config.ema_decay < 1, "in [0, 1)"),
        "recompute_bn_images": (config.recompute_bn_images, config.recompute_bn_images >= 0, "0 or more"),
        "max_skipped_in_a_row": (config.max_skipped_in_a_row, config.max_skipped_in_a_row > 0, "positive"),
        "watch.profile_steps": (
            traced,
            not traced or (whole and len(traced) == 2 and traced[0] <= traced[1]),
            "the first step and the last, whole numbers from 1: 100,110",
        ),
        "watch.spike_nats": (config.watch.spike_nats, config.watch.spike_nats > 0, "positive"),
        "schedule boundaries": (
            boundaries,
            boundaries == sorted(set(boundaries)) and min(boundaries, default=0) >= 0,
            "increasing, from 0",
        ),
        "augment.color_jitter": (augment.color_jitter, 0 <= augment.color_jitter <= 1, "in [0, 1]"),
        "augment.lighting_std": (augment.lighting_std, augment.lighting_std >= 0, "0 or more"),
        "augment.pad_px": (augment.pad_px, augment.pad_px >= 0, "0 or more"),
        "log.every_steps": (config.log.every_steps, config.log.every_steps > 0, "positive"),
        "evaluate.every_steps": (every, every is None or every > 0, "positive, or unset for every epoch"),
        "checkpoint.every_steps": (config.checkpoint.every_steps, config.checkpoint.every_steps > 0, "positive"),
        "checkpoint.keep_newest": (config.checkpoint.keep_newest, config.checkpoint.keep_newest > 0, "1 or more"),
        **{
            f"checkpoint.{name}": (
                config.checkpoint[name],
                config.checkpoint[name] is None or config.checkpoint[name] > 0,
                "positive, or unset for none",
            )
            for name in ("keep_every_epochs", "keep_every_steps")
        },
        "checkpoint.keep_best": (config.checkpoint.keep_best, config.checkpoint.keep_best >= 0, "0 or more"),
    }
    return lines + recipe_problems(config) + _out_of_range(ranges)


def recipe_problems(config: ConfigDict) -> list[str]:
    """Return what is wrong with the fields of recipes newer than the paper, one sentence each."""
    augment, data, group = config.augment, config.data, config.bn_group_images or config.batch_size or 1
    tables = {
        "optimizer": (config.optimizer, optim.OPTIMIZERS),
        "weight_decay_of": (config.weight_decay_of, optim.DECAYED),
        "loss": (config.loss, LOSSES),
        "augment.policy": (augment.policy, POLICIES),
        "data.on_bad_image": (data.on_bad_image, ON_BAD_IMAGE),
    }
    lines = [unknown(name, value, allowed) for name, (value, allowed) in tables.items() if value not in allowed]
    if group == 1 and (augment.mixup_alpha or augment.cutmix_alpha):
        lines.append(
            f"augment.mixup_alpha={augment.mixup_alpha} and augment.cutmix_alpha={augment.cutmix_alpha} mix the images "
            "of a batch-norm group, and bn_group_images=1 leaves each alone: take larger groups, or set both to 0."
        )
    if config.target_threshold is not None and (config.loss != "sigmoid" or config.label_smoothing):
        lines.append(
            f"target_threshold={config.target_threshold} makes a yes or a no of every class: it is for loss='sigmoid' "
            f"(it is {config.loss!r}) and would take label_smoothing={config.label_smoothing} away. Leave it unset, or "
            "set label_smoothing to 0."
        )
    if data.repeats > 1 and config.batch_size // group < data.repeats:
        lines.append(
            f"data.repeats={data.repeats} wants the copies of an image in as many batch-norm groups, and the batch has "
            f"{config.batch_size // group}: take fewer repeats, or a smaller bn_group_images."
        )
    if data.train_size_px is not None and data.train_size_px != data.image_size_px and data.crop == "none":
        lines.append(
            f"data.train_size_px={data.train_size_px} is not data.image_size_px={data.image_size_px}, and images that "
            "are taken as they are (data.crop='none') have one size: leave it unset, or set data.crop."
        )
    threshold = config.target_threshold
    ranges = {
        "target_threshold": (threshold, threshold is None or 0 <= threshold < 1, "in [0, 1), or unset for none"),
        "augment.mixup_alpha": (augment.mixup_alpha, augment.mixup_alpha >= 0, "0 or more"),
        "augment.cutmix_alpha": (augment.cutmix_alpha, augment.cutmix_alpha >= 0, "0 or more"),
        "augment.erase_probability": (augment.erase_probability, 0 <= augment.erase_probability <= 1, "in [0, 1]"),
        "augment.magnitude": (augment.magnitude, 0 <= augment.magnitude <= MAX_MAGNITUDE, f"in [0, {MAX_MAGNITUDE}]"),
        "data.repeats": (data.repeats, data.repeats >= 1, "1 or more"),
        "data.train_size_px": (
            data.train_size_px,
            data.train_size_px is None or data.train_size_px > 0,
            "positive, or unset for data.image_size_px",
        ),
    }
    return lines + _out_of_range(ranges)


def _not_finite(config: ConfigDict) -> list[str]:
    """Return a sentence for every number of a config that is not finite, or a whole number that int32 cannot hold."""
    fields = flatten_dict(config.to_dict(), sep=".")
    numbers = {name: value if isinstance(value, tuple | list) else (value,) for name, value in fields.items()}
    return [
        f"{name}={fields[name]!r} must be finite, and a whole number below 2**31."
        if any(isinstance(value, int) for value in values)
        else f"{name}={fields[name]!r} must be finite."
        for name, values in numbers.items()
        if name not in ("num_epochs", "seed")  # which have other bounds
        and not all(
            math.isfinite(value) if isinstance(value, float) else abs(value) < 2**31
            for value in values
            if isinstance(value, int | float)
        )
    ]


def _out_of_range(ranges: dict[str, tuple[object, bool, str]]) -> list[str]:
    return [f"{name}={value!r} must be {allowed}." for name, (value, fine, allowed) in ranges.items() if not fine]
