"""What a loaded network is, in words."""

from collections.abc import Sequence
from typing import Any

from etils import epath

NUM_NAMES = 3


def describe(config: dict[str, Any], class_names: Sequence[str], origin: str) -> str:
    """Return the network, its classes, its preprocessing and the origin of its weights, one a line.

    Args:
      config: a resolved config, or the fields that `api.build` gives.
      class_names: one per class.
      origin: see `origin_of`.
    """
    model, data = config["model"], config["data"]
    changes = ", ".join(f"{name}={value}" for name, value in model.items() if name != "name" and value is not None)
    network = model.get("name") or f"({changes})"
    names = ", ".join(class_names[:NUM_NAMES]) + (", ..." if len(class_names) > NUM_NAMES else "")
    cut = "" if data["crop"] == "none" else f" cut out of a short side of {data['resize_px']} px"
    scales = [", ".join(f"{value:g}" for value in data[name]) for name in ("mean", "std")]
    colors = {1: "gray", 3: "RGB"}.get(len(data["mean"]), f"{len(data['mean'])} channels")
    return "\n".join(
        (
            f"Net({network}",
            f"  classes:  {len(class_names):,} ({names})",
            f"  images:   {data['image_size_px']} px{cut}, {data.get('interpolation', 'bicubic')}, {colors}",
            f"  scale:    0..255, mean ({scales[0]}), std ({scales[1]})",
            f"  weights:  {origin})",
        )
    )


def origin_of(checkpoint: epath.Path, description: dict[str, Any], raw: bool) -> str:
    """Return where the weights of a checkpoint come from: its path, its step, and whether they are averages.

    Args:
      description: JSON item of the checkpoint.
      raw: whether the last weights were taken.
    """
    source = description.get("source")
    if source:
        published = f" ({source['weights']})" if source.get("weights") else ""
        return f"{checkpoint}, converted from {source['format']}: {source['file']}{published}"
    step = f"step {int(checkpoint.name):,} of " if checkpoint.name.isdecimal() else ""
    averages = description["config"].get("ema_decay")
    kind = "" if not averages else ", the last weights" if raw else f", moving averages (ema_decay={averages:g})"
    return f"{step}{checkpoint}{kind}"
