"""The fastest algorithm of every convolution that was tried, with the cost of each beside it.

Written by commands, not by hand. CPU and GPU, python -m resnext_jax.analysis.tune: milliseconds, forward and
the gradients that training needs; float32 and 8 images (128 of 28 px) on a CPU, else bfloat16 and 64
images. TPU, python -m resnext_jax.analysis.tune_tpu: the compiler's estimate, in M cycles of a whole
training step of a network with two blocks in each stage.
"""
# fmt: off
# ruff: noqa: E501

Key = tuple[int, int, int, int, int, int]  # kernel_px, stride, groups, in_channels, out_channels, height

TABLE: dict[str, dict[Key, tuple[str, str]]] = {
    "cpu": {
        (1, 1, 1, 16, 32, 14): ("im2col", "im2col 0.545, native+im2col 0.777, im2col+native 1.95, native 3.99"),
        (1, 1, 1, 16, 64, 14): ("im2col", "im2col 0.827, native+im2col 2.41, native 4.71, im2col+native 4.89"),
        (1, 1, 1, 32, 64, 14): ("im2col", "im2col 1.73, native+im2col 2.76, im2col+native 5.95, native 7.32"),
        (1, 1, 1, 64, 32, 14): ("im2col", "im2col 1.83, native+im2col 2.74, im2col+native 6.76, native 7.27"),
        (1, 1, 1, 64, 64, 14): ("im2col", "im2col 3.33, native+im2col 4.57, im2col+native 10.5, native 11.6"),
        (1, 1, 1, 64, 64, 56): ("im2col", "im2col 2.81, native+im2col 3.67, im2col+native 7.34, native 7.67"),
        (1, 1, 1, 64, 128, 7): ("im2col", "im2col 1.2, native+im2col 1.8, im2col+native 3.58, native 3.87"),
        (1, 1, 1, 64, 128, 56): ("im2col", "im2col 4.44, native+im2col 5.92, im2col+native 12.9, native 14.1"),
        (1, 1, 1, 64, 256, 56): ("im2col", "im2col 8.28, native+im2col 11.1, im2col+native 24.8, native 47.7"),
        (1, 1, 1, 128, 64, 7): ("im2col", "im2col 1.88, native+im2col 2.06, im2col+native 4.19, native 4.95"),
        (1, 1, 1, 128, 128, 7): ("im2col", "im2col 3.16, native+im2col 3.43, im2col+native 6.97, native 7.95"),
        (1, 1, 1, 128, 256, 4): ("im2col", "im2col 2.38, native+im2col 2.47, im2col+native 4.55, native 4.6"),
        (1, 1, 1, 128, 256, 56): ("im2col", "im2col 16.4, native+im2col 21.2, im2col+native 49.1, native 53.7"),
        (1, 1, 1, 128, 512, 28): ("im2col", "im2col 7.66, native+im2col 9.58, im2col+native 19.5, native 21"),
        (1, 1, 1, 256, 64, 56): ("im2col", "im2col 10.4, native+im2col 14.4, im2col+native 26.2, native 32.1"),
        (1, 1, 1, 256, 128, 4): ("im2col", "im2col 1.53, native+im2col 2.06, im2col+native 3.41, native 3.52"),
        (1, 1, 1, 256, 128, 56): ("im2col", "im2col 17.2, native+im2col 24.7, im2col+native 44.2, native 51.6"),
        (1, 1, 1, 256, 256, 56): ("im2col", "im2col 30.3, native+im2col 40.7, im2col+native 86.2, native 96"),
        (1, 1, 1, 256, 512, 28): ("im2col", "im2col 13.7, native+im2col 14.4, im2col+native 32.5, native 33"),
        (1, 1, 1, 256, 1024, 14): ("im2col", "im2col 6.19, native+im2col 6.29, im2col+native 13.3, native 13.5"),
        (1, 1, 1, 512, 128, 28): ("im2col", "im2col 8.62, native+im2col 11.6, im2col+native 17.6, native 21.4"),
        (1, 1, 1, 512, 256, 28): ("im2col", "im2col 14.3, native+im2col 15.1, im2col+native 29.5, native 30.3"),
        (1, 1, 1, 512, 512, 28): ("im2col", "im2col 25.2, native+im2col 27.3, im2col+native 61.9, native 63.1"),
        (1, 1, 1, 512, 1024, 14): ("im2col", "im2col 11.7, native+im2col 13.8, im2col+native 27.3, native 27.9"),
        (1, 1, 1, 512, 2048, 7): ("im2col", "im2col 6.47, native+im2col 6.83, im2col+native 11.9, native 12.8"),
        (1, 1, 1, 1024, 256, 14): ("im2col", "im2col 7.53, native+im2col 8.35, im2col+native 13.2, native 13.3"),
        (1, 1, 1, 1024, 512, 14): ("im2col", "im2col 12.6, native+im2col 13.9, im2col+native 25, native 26.5"),
        (1, 1, 1, 1024, 1024, 14): ("im2col", "im2col 25.8, native+im2col 27.9, im2col+native 55.4, native 57.4"),
        (1, 1, 1, 1024, 2048, 7): ("im2col", "im2col 12.9, native+im2col 14.3, im2col+native 25.4, native 26.8"),
        (1, 1, 1, 2048, 512, 7): ("im2col", "im2col 6.4, native+im2col 7.14, im2col+native 11.8, native 12.7"),
        (1, 1, 1, 2048, 1024, 7): ("im2col", "im2col 12.4, native+im2col 14.8, im2col+native 25.8, native 28.3"),
        (1, 2, 1, 64, 128, 14): ("im2col", "im2col 1.66, native+im2col 2.03, subsampled 4.22, im2col+native 4.26, native 9.21"),
        (1, 2, 1, 128, 256, 7): ("im2col", "im2col 1.85, native+im2col 2.03, im2col+native 3.32, native 3.52, subsampled 3.66"),
        (1, 2, 1, 256, 512, 56): ("im2col", "im2col 14.5, native+im2col 16.6, subsampled 36.2, native 60.7, im2col+native 73.2"),
        (1, 2, 1, 512, 1024, 28): ("im2col", "im2col 12, native+im2col 13.3, subsampled 29, im2col+native 35.6, native 37.1"),
        (1, 2, 1, 1024, 2048, 14): ("im2col", "im2col 11.9, native+im2col 13.9, im2col+native 25.6, subsampled 25.8, native 27.6"),
        (3, 1, 1, 64, 64, 56): ("native", "native 30.5, im2col 58.8, im2col+native 66.4, native+im2col 68.8"),
        (3, 1, 1, 128, 128, 28): ("native", "native 16.4, native+im2col 34.9, im2col+native 35.5, im2col 37.6"),
        (3, 1, 1, 256, 256, 14): ("native", "native 15, native+im2col 16, im2col 16.1, im2col+native 16.6"),
        (3, 1, 1, 512, 512, 7): ("im2col", "im2col 14.5, native+im2col 16.5, im2col+native 19.2, native 20.6"),
        (3, 1, 8, 32, 32, 14): ("slabs32", "dense 10.5, merged256 10.7, merged64 10.7, slabs32 10.8, merged128 11, slabs128 11.3, im2col 24.8, slabs32+im2col 27.5, im2col+slabs32 28.1, per_tap 33.8, native 363"),
        (3, 1, 8, 64, 64, 7): ("slabs32", "im2col 4.86, slabs32 4.89, im2col+slabs32 5.75, slabs32+im2col 6, per_tap 6.51, merged64 8.64, merged128 8.65, merged256 8.75, dense 8.86, slabs128 9.01, native 232"),
        (3, 1, 8, 128, 128, 4): ("slabs32", "im2col 2.85, slabs32 2.98, slabs32+im2col 3.26, im2col+slabs32 3.97, per_tap 4.08, merged128 5.58, merged256 5.87, dense 7.07, slabs128 14.9, merged64 44.5, native 113"),
        (3, 1, 32, 128, 128, 56): ("slabs32", "slabs32 49.6, dense 68.4, merged256 69.8, slabs128 70.4, merged128 71.4, im2col 92.4, slabs32+im2col 104, im2col+slabs32 107, per_tap 109, merged64 614, native 5646"),
        (3, 1, 32, 256, 256, 28): ("slabs32", "slabs32 17.2, slabs128 36.5, im2col 43.9, slabs32+im2col 48.8, im2col+slabs32 53.6, per_tap 58.6, merged256 70.9, dense 77.5, merged128 349, merged64 537, native 2874"),
        (3, 1, 32, 512, 512, 14): ("slabs32", "slabs32 10.1, slabs128 17.9, im2col 20.5, im2col+slabs32 23.5, slabs32+im2col 25, per_tap 34, dense 71.8, merged256 199, merged128 251, merged64 403, native 1378"),
        (3, 1, 32, 1024, 1024, 7): ("slabs32", "im2col+slabs32 5.79, slabs32 6.06, im2col 6.85, slabs32+im2col 6.92, per_tap 7.67, slabs128 11.3, dense 142, merged256 159, merged128 222, merged64 384, native 699"),
        (3, 2, 1, 1, 16, 28): ("im2col", "im2col 0.602, im2col+native 0.659, native+im2col 0.759, native 0.883"),
        (3, 2, 1, 128, 128, 56): ("native", "native 27.2, im2col 38.8, native+im2col 40.2, im2col+native 47.3"),
        (3, 2, 1, 256, 256, 28): ("im2col", "im2col 16.7, native+im2col 16.8, native 19.2, im2col+native 28.6"),
        (3, 2, 1, 512, 512, 14): ("im2col", "im2col 14.2, native+im2col 16.7, im2col+native 20.1, native 20.9"),
        (3, 2, 8, 64, 64, 14): ("im2col+slabs32", "im2col+slabs32 7.78, slabs32+im2col 8.95, per_tap 9.83, im2col 9.96, slabs32 10.6, merged64 11.9, merged128 12.2, slabs128 12.5, merged256 12.8, dense 13.6, native 244"),
        (3, 2, 8, 128, 128, 7): ("im2col", "im2col 3.79, im2col+slabs32 4.25, slabs32 4.32, slabs32+im2col 5.02, per_tap 7.15, merged256 7.51, dense 7.72, slabs128 7.73, merged128 8.37, merged64 54.3, native 117"),
        (3, 2, 32, 256, 256, 56): ("slabs32", "slabs32 47.1, im2col 56.7, slabs32+im2col 61.8, im2col+slabs32 63, per_tap 70.2, slabs128 83.2, merged256 131, dense 134, merged128 328, merged64 505, native 2864"),
        (3, 2, 32, 512, 512, 28): ("slabs32", "slabs32 18.1, slabs128 28.4, im2col+slabs32 33.9, im2col 34.3, per_tap 35.7, slabs32+im2col 41.5, dense 100, merged256 205, merged128 252, merged64 426, native 1497"),
        (3, 2, 32, 1024, 1024, 14): ("im2col", "im2col 10.3, slabs32+im2col 11.4, slabs32 11.7, per_tap 12.4, slabs128 16.4, im2col+slabs32 18, dense 117, merged256 161, merged128 227, merged64 380, native 737"),
        (7, 2, 1, 3, 64, 224): ("native", "native 33.6, space_to_depth 48, im2col 68.6, native+im2col 71.3, im2col+native 96.1"),
    },
    "tpu v5e": {
        (1, 1, 1, 64, 128, 56): ("moments", "moments 18.59, native 18.61"),
        (1, 1, 1, 64, 256, 56): ("moments", "moments 18.59, native 19.07"),
        (1, 1, 1, 128, 256, 56): ("moments", "moments 18.59, native 19.18"),
        (1, 1, 1, 256, 128, 56): ("native", "native 18.59, moments 18.84"),
        (1, 1, 1, 256, 256, 56): ("native", "native 18.59, moments 18.64"),
        (3, 1, 32, 128, 128, 56): ("merged128", "blocked128 18.59, dense 18.59, merged128 18.59, merged256 18.59, native 42.87"),
        (7, 2, 1, 3, 64, 224): ("space_to_depth", "space_to_depth 18.59, native 18.93"),
    },
}
