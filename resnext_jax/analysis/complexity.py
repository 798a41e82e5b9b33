"""Parameters, multiply-adds and activations of networks, counted in the traced program, beside published figures.

python -m resnext_jax.analysis.complexity [NAME ...] [--image_size_px=N] [--stages] [--json]

By default the whole zoo, each network at the image size that it was made for. Multiply-adds are those of convolutions
and matrix products, for one image; activations are the outputs of convolutions (Radosavovic et al. 2020, section 3).
Nothing is computed. `--stages` prints the parts of a network (the paper's Table 1), and one block of each stage by
itself (Table 2).
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from functools import partial

import jax
from absl import flags

from resnext_jax.analysis import command
from resnext_jax.analysis.published import PUBLISHED, Figures, agrees
from resnext_jax.errors import UserError, raise_all, unknown
from resnext_jax.models import zoo
from resnext_jax.models.complexity import Counts, products, stem_together
from resnext_jax.ops.keys import seed_key


class Complexity:
    """The costs of a network for one image, by `products` (convolutions and matrix products) and `params` by place."""

    def __init__(self, name: str, image_size_px: int | None = None, arch: zoo.Row | None = None):
        """Trace the row, or `arch`; raise UserError where it does not take images of this size."""
        arch = zoo.ARCHS[name] if arch is None else arch
        usual_px, channels, classes = zoo.usual_input(arch)
        self.name, self.image_size_px = name, usual_px if image_size_px is None else image_size_px
        model = zoo.build_model(
            arch,
            classes,
            platform="cpu",
            conv_impl="native",  # the others are the same mathematics in other operations
            compute_dtype="float32",
            bn_group_images=0,
        )
        images = jax.ShapeDtypeStruct((1, self.image_size_px, self.image_size_px, channels), "float32")
        # Initialising runs the network, and draws parameters without any product.
        trace = jax.make_jaxpr(partial(model.init, train=False), return_shape=True)
        program, variables = trace(seed_key(0), images)
        self.products = list(products(program.jaxpr))
        self.params = {
            stem_together(tuple(entry.key for entry in path)): leaf.size
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        }

    def of(self, *place: str) -> Counts:
        """Return the counts of a part by its path, ("stage2", "block1"), or without a path of the network."""
        depth = len(place)
        params = sum(size for path, size in self.params.items() if path[:depth] == place)
        return sum((found.counts for found in self.products if found.place[:depth] == place), start=Counts(params))

    def weights(self, *place: str) -> int:
        """Return the number of weights of convolutions and classifier in a part: no batch norms and biases."""
        depth = len(place)
        return sum(size for path, size in self.params.items() if path[:depth] == place and path[-1] == "kernel")

    def size_px(self, part: str) -> tuple[int, ...] | None:
        """Return height and width of the outputs of a part's last convolution; None where there is no convolution."""
        sizes = [found.size_px for found in self.products if found.place[0] == part and found.size_px]
        return sizes[-1] if sizes else None

    def parts(self) -> list[str]:
        """Return the outermost modules in the order of the program, the classifier at the end."""
        names = dict.fromkeys([*(found.place[0] for found in self.products), *(path[0] for path in self.params)])
        return sorted(names, key=lambda name: name == "classifier")

    def blocks(self, part: str) -> list[str]:
        """Return the blocks (or layers) of a stage, in order."""
        names = {path[1] for path in self.params if path[0] == part and re.fullmatch(r"(block|layer)\d+", path[1])}
        return sorted(names, key=lambda name: int(re.sub(r"\D", "", name)))


def table(results: Sequence[Complexity]) -> Iterator[str]:
    """Yield one line per network; a second and a third line where several sources publish figures."""
    width = max(len(result.name) for result in results)
    yield (
        f"{'network':{width}}{'px':>5}{'parameters':>14}{'multiply-adds':>15}{'activations':>13}"
        "   published: parameters, multiply-adds, activations"
    )
    for result in results:
        counts = result.of()
        line = f"{result.name:{width}}{result.image_size_px:>5}{columns(counts)}"
        # Published multiply-adds and activations are for the size that the network was made for.
        usual = result.image_size_px == zoo.usual_input(zoo.ARCHS[result.name])[0]
        shown = [beside(counts, figures, usual) for figures in PUBLISHED.get(result.name, ())]
        for number, text in enumerate(shown or [""]):
            yield f"{line if number == 0 else '':{len(line)}}   {text}".rstrip()


def columns(counts: Counts) -> str:
    """Return the counts as columns of a line."""
    return f"{counts.params:>14,}{counts.multiply_adds / 1e9:>13.3f} G{counts.activations / 1e6:>11.2f} M"


def beside(counts: Counts, figures: Figures, usual: bool) -> str:
    """Return the figures of one source; one that differs from the count is marked."""
    pairs = [(counts.params, figures.params)]
    if usual:
        pairs += [(counts.multiply_adds, figures.multiply_adds), (counts.activations, figures.activations)]
    shown = [text if agrees(count, text) else f"{text} (differs)" for count, text in pairs if text]
    return f"{figures.source}: {', '.join(shown)}" if shown else ""


def stage_table(result: Complexity) -> Iterator[str]:
    """Yield one line per part of a network, with the last block of a stage beside the stage."""
    yield f"{result.name} at {result.image_size_px} px"
    yield f"  {'':12}{'output':>10}{'parameters':>14}{'multiply-adds':>15}{'activations':>13}   the last block alone"
    for part in result.parts():
        counts, blocks = result.of(part), result.blocks(part)
        size = "x".join(map(str, result.size_px(part) or ()))
        line = f"  {part:12}{size:>10}{columns(counts)}"
        if blocks:
            block = result.of(part, blocks[-1])
            weights = result.weights(part, blocks[-1])
            line += f"   1 of {len(blocks)}: {weights / 1e3:,.1f} k weights, {block.multiply_adds / 1e9:.3f} G"
        yield line


def define_flags(to: flags.FlagValues) -> None:
    """Add the command's flags."""
    flags.DEFINE_integer("image_size_px", None, "Of all networks; by default what each was made for.", flag_values=to)
    flags.DEFINE_bool("stages", False, "Print the parts of every network.", flag_values=to)
    command.define_json(to)


def run(flag_values: flags.FlagValues, names: Sequence[str]) -> None:
    """Count what the command line asks for and print it."""
    raise_all([unknown("network", name, zoo.ARCHS) for name in names if name not in zoo.ARCHS])
    size_px = flag_values.image_size_px
    if size_px is not None and size_px < 1:
        raise UserError(f"--image_size_px={size_px} must be 1 or more; 224 is usual for ImageNet, 32 for CIFAR.")
    results, problems = [], []
    for name in names or zoo.ARCHS:
        try:
            results.append(Complexity(name, size_px))
        except UserError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    raise_all(problems)
    print("\n".join(table(results)))
    if flag_values.stages:
        print("".join("\n" + "\n".join(stage_table(result)) + "\n" for result in results))
    rows = [{"name": result.name, **dataclasses.asdict(result.of())} for result in results]
    command.print_json(flag_values, rows)


main = partial(command.main, define_flags, run, takes_arguments=True)

if __name__ == "__main__":
    main()
