"""Peak bfloat16 rate of one device's matrix units, by TPU generation or by the name of a GPU.

Published figures without sparsity. A device of JAX is a chip, on a TPU v3 one of its two cores.
"""

PEAK_BF16_FLOPS_PER_S: dict[str, float] = {
    "v3": 61.5e12,
    "v4": 275e12,
    "v5e": 197e12,
    "v5p": 459e12,
    "v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
