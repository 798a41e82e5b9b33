"""How to install `resnext_jax`; the exact versions that are tested stand in requirements.lock."""

from setuptools import Extension, find_packages, setup

JAX = ">=0.10.2,<0.12"  # 0.11 needs Python 3.12 or later
TORCH = "torch==2.13.0"
# A library in a wheel: libturbojpeg 3, which decodes the part of a JPEG that a crop needs.
TURBOJPEG = 'turbojpeg==0.0.2; sys_platform == "linux" and platform_machine == "x86_64"'

setup(
    name="resnext_jax",
    version="0.1.0",
    description="ResNeXt in JAX and Flax: the paper's networks, trained and evaluated with one command each",
    license="Apache-2.0",
    author="The resnext_jax authors",
    python_requires=">=3.11,<3.14",
    # configs/ and main.py are used from the checkout: `configs` is too common a name to install for everybody.
    packages=find_packages(include=["resnext_jax", "resnext_jax.*"]),
    # Without a C compiler the package works all the same: data/resize.py then scales images by Pillow.
    ext_modules=[
        Extension(
            "resnext_jax.data._resize",
            ["resnext_jax/data/_resize.c"],
            extra_compile_args=["-O3", "-ffp-contract=off"],
            libraries=["m"],
            optional=True,
        )
    ],
    package_data={"resnext_jax.data": ["builtin/*.gz", "builtin/LICENSE*", "*.tsv"], "resnext_jax.convert": ["*.tsv"]},
    install_requires=[
        f"jax{JAX}",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "tensorflow-datasets>=4.9.10,<5",  # reads prepared data sets without TensorFlow
        "importlib_resources",  # tensorflow-datasets imports it without asking for it
        "ml-collections>=1.1,<2",
        "clu>=0.0.12,<0.1",
        "etils[epath]>=1.15",
        "tensorboardX>=2.6.5,<3",
        "matplotlib>=3.10,<4",
        "pillow>=12",
        "simplejpeg>=1.9,<2",
        "numpy>=2.2,<3",
        "scipy>=1.14",  # evaluate.compare; JAX asks for it too
        "jaxtyping>=0.3.11,<0.4",
        "flatbuffers>=25.2",  # jax.export writes and reads its files with it
        "absl-py>=2.3,<3",
    ],
    extras_require={
        "tpu": [f"jax[tpu]{JAX}"],  # brings the libtpu that belongs to it
        "cuda": [f"jax[cuda12]{JAX}"],
        "gcs": ["gcsfs"],  # data in a bucket
        "fast": [TURBOJPEG],
        "bench": [TORCH, TURBOJPEG, "tensorflow>=2.21", "scikit-learn>=1.7,<2"],  # whom data.bench compares with
        "detection": ["pycocotools>=2.0.11,<3"],  # for evaluate.coco=pycocotools only
        "convert": [TORCH],  # reads and writes .pth; .safetensors and .t7 need nothing
        "dev": [
            TORCH,  # torchvision and timm: requirements-nodeps.lock
            "beartype>=0.22,<0.23",
            "pre-commit>=4,<5",
            "pycocotools>=2.0.11,<3",
            "pyright[nodejs]>=1.1.414,<1.2",
            "pytest>=9,<10",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.17.6,<0.18",
            "scikit-learn>=1.7,<2",
            TURBOJPEG,
        ],
    },
)
