"""Filled by resnext_jax.analysis.tune."""

Key = tuple[int, int, int, int, int, int]  # kernel_px, stride, groups, in_channels, out_channels, height

TABLE: dict[str, dict[Key, tuple[str, str]]] = {}
