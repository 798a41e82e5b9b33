"""Makes the built-in data set: a class-balanced subset of Fashion-MNIST, in the format of the full set.

    python make_subset.py --full_dir=DIR [--out_dir=DIR]

The rule: of each class, the first TRAIN_PER_CLASS (TEST_PER_CLASS) images in file order, and these kept in file
order. The same input gives the same pixels and labels everywhere, and the same .gz bytes with the same zlib; the
sums in README.md are of both.
"""

import argparse
import gzip
import hashlib
import pathlib

import numpy as np

TRAIN_PER_CLASS = 1500  # the most, in hundreds, that keeps the folder below 8.0 MB
TEST_PER_CLASS = 300
NUM_CLASSES = 10


def first_of_each_class(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Return the positions, ascending, of the first `per_class` examples of each class."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(NUM_CLASSES)]))


def write_gz(path: pathlib.Path, content: bytes) -> None:
    """Writes a .gz that holds neither its name nor the time, and prints its size and sums."""
    with open(path, "wb") as file, gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as stream:
        stream.write(content)
    packed = path.read_bytes()
    print(f"{path.name}  {len(packed):,} bytes")
    print(f"  packed   sha256 {hashlib.sha256(packed).hexdigest()}")
    print(f"  unpacked sha256 {hashlib.sha256(content).hexdigest()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full_dir", type=pathlib.Path, required=True, help="the four .gz files of the full set")
    parser.add_argument("--out_dir", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for split, per_class in (("train", TRAIN_PER_CLASS), ("t10k", TEST_PER_CLASS)):
        images_name, labels_name = f"{split}-images-idx3-ubyte.gz", f"{split}-labels-idx1-ubyte.gz"
        packed_images = (args.full_dir / images_name).read_bytes()
        packed_labels = (args.full_dir / labels_name).read_bytes()
        labels = np.frombuffer(gzip.decompress(packed_labels), np.uint8, offset=8)
        images = np.frombuffer(gzip.decompress(packed_images), np.uint8, offset=16).reshape(len(labels), 28, 28)
        chosen = first_of_each_class(labels, per_class)
        # idx header, big-endian: type 8 = uint8, number of dimensions, then each dimension
        images_header = np.array([0x0803, len(chosen), 28, 28], ">i4").tobytes()
        labels_header = np.array([0x0801, len(chosen)], ">i4").tobytes()
        write_gz(args.out_dir / images_name, images_header + images[chosen].tobytes())
        write_gz(args.out_dir / labels_name, labels_header + labels[chosen].tobytes())


if __name__ == "__main__":
    main()
