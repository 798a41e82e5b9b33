"""ResNeXt in JAX and Flax. In a notebook: `net = resnext_jax.load(PATH); logits = net(images)`."""

from resnext_jax.api import Net, build, list_models, load

__all__ = ["Net", "build", "list_models", "load"]
