"""The walk over a program, on programs small enough to add up by hand."""

import pytest

from resnext_jax.analysis import hlo
from resnext_jax.analysis.chips import CHIPS
from resnext_jax.analysis.parts import PARTS, direction_of, part_of
from resnext_jax.analysis.report import account, table
from resnext_jax.models.zoo import ARCHS

BACKWARD = "jit(train_step)/transpose(jvp(ResNeXt))"
FORWARD = "jit(train_step)/jvp(ResNeXt)"


def cycles(number: int) -> str:
    return f'backend_config={{"window_config":{{"estimated_cycles":"{number}"}},"lists":[]}}'


def named(op_name: str) -> str:
    return f'metadata={{op_name="{op_name}" stack_frame_id=3}}'


CONV2 = named(f"{BACKWARD}/stage2/block1/conv2/conv_general_dilated")
# A loop from 2 to 5, so 3 trips of a 100-cycle fusion, whose inner 77 are part of the 100, and of a combined
# all-reduce of two arrays; then a call of 10 cycles, and a fusion of 1000.
LOOP = f"""HloModule jit_train_step, is_scheduled=true

%fused_conv (p.0: f32[8]) -> f32[8] {{
  %p.0 = f32[8]{{0:T(128)}} parameter(0)
  %row = f32[1,8]{{1,0}} bitcast(%p.0)
  %square = f32[8,8]{{1,0}} broadcast(%p.0), dimensions={{1}}
  %conv.1 = f32[1,8]{{1,0}} convolution(%row, %square), dim_labels=bf_io->bf, {CONV2}, {cycles(77)}
  ROOT %flat = f32[8]{{0:T(128)}} bitcast(%conv.1)
}}

%body (arg: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %arg = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%arg), index=0
  %x = f32[8]{{0:T(128)S(1)}} get-tuple-element(%arg), index=1
  %fusion.1 = f32[8]{{0}} fusion(%x), kind=kOutput, calls=%fused_conv, {named("jit(f)/bn1/mul")}, {cycles(100)}
  %sum = (f32[8]{{0:T(128)}}, /*index=1*/bf16[3,4]{{1,0:T(8,128)(2,1)}}) all-reduce(%fusion.1, %y), channel_id=1
  %g.0 = f32[8]{{0:T(128)}} get-tuple-element(%sum), index=0, {CONV2}
  %g.1 = bf16[3,4]{{1,0}} get-tuple-element(%sum), index=1, {named(f"{BACKWARD}/stem_conv/conv")}
  ROOT %next = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) tuple(%i, %g.0)
}}

%condition (arg.1: (s32[], f32[8])) -> pred[] {{
  %arg.1 = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) parameter(0)
  %i.1 = s32[]{{:T(128)}} get-tuple-element(%arg.1), index=0
  %limit = s32[]{{:T(128)}} constant(5)
  ROOT %lt = pred[]{{:T(512)}} compare(%i.1, %limit), direction=LT
}}

%callee (p.1: f32[8]) -> f32[8] {{
  %p.1 = f32[8]{{0}} parameter(0)
  ROOT %neg = f32[8]{{0}} negate(%p.1), {named("jit(train_step)/update/neg")}, {cycles(10)}
}}

ENTRY %main (param: f32[8]) -> f32[8] {{
  %param = f32[8]{{0}} parameter(0), {named("state")}
  %two = s32[]{{:T(128)}} constant(2)
  %copy.1 = s32[]{{:T(128)}} copy(%two)
  %init = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) tuple(%copy.1, %param)
  %while.1 = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) while(%init), condition=%condition, body=%body
  %y = f32[8]{{0:T(128)}} get-tuple-element(%while.1), index=1
  %call.1 = f32[8]{{0}} call(%y), to_apply=%callee
  %bn = f32[8]{{0}} fusion(%call.1), calls=%other, {named(f"{FORWARD}/stage2/block1/bn1/mul")}, {cycles(1000)}
  ROOT %copy.2 = f32[8]{{0}} copy(%bn), {cycles(1)}
}}

%other (p.2: f32[8]) -> f32[8] {{
  ROOT %p.2 = f32[8]{{0}} parameter(0)
}}
"""


def test_a_loop_counts_times_its_trips_and_a_fusion_once():
    steps, unknown = hlo.executed(hlo.parse(LOOP))
    assert hlo.total_cycles(steps) == 3 * 100 + 10 + 1000 + 1
    assert unknown == []


def account_of(text: str, network: str = "resnext50_32x4d"):
    return account(text, CHIPS["v5e"], ARCHS[network])


def test_a_fusion_counts_as_its_convolution_a_copy_as_its_source():
    costs = account_of(LOOP)
    assert costs.parts == {"grouped 3x3": {"backward": 300}, "BN": {"forward": 1001}, "optimizer": {"update": 10}}
    assert costs.estimated_s == pytest.approx(1311 / 1.5e9)


def test_a_combined_collective_is_split_by_array_and_trip():
    costs = account_of(LOOP)
    (row,) = costs.collectives
    assert (row["opcode"], row["count"], row["shapes"]) == ("all-reduce", 3, ["f32[8]", "bf16[3,4]"])
    assert row["parts"] == {"grouped 3x3 backward": 3 * 32, "stem backward": 3 * 24}
    assert costs.collective_bytes == row["bytes"] == 3 * (32 + 24)


@pytest.mark.parametrize(
    ("old", "new", "total", "unknown"),
    [
        ("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}', 7 * 100 + 1011, []),
        ("direction=LT", "direction=NE", 100 + 1011, ["while.1"]),
        ("copy(%two)", "copy(%param)", 100 + 1011, ["while.1"]),
    ],
)
def test_trips_are_taken_from_xla_or_named_as_unknown(old, new, total, unknown):
    text = LOOP.replace(old, new)
    steps, found = hlo.executed(hlo.parse(text))
    assert (hlo.total_cycles(steps), found) == (total, unknown)
    assert ("while.1" in table(account_of(text, "resnet50"), CHIPS["v5e"])) == bool(unknown)


def entry(*lines: str) -> str:
    branches = ("a", 30), ("b", 50)
    text = [
        f"%{name} (p: f32[4]) -> f32[4] {{\n  ROOT %n = f32[4]{{0}} negate(%p), {cycles(n)}\n}}" for name, n in branches
    ]
    return "\n".join([*text, "ENTRY %main (x: f32[1024,256]) -> f32[4] {", *(f"  {line}" for line in lines), "}"])


ASYNC = "%s = (f32[4]{0}, f32[4]{0}) all-gather-start(%x), channel_id=2"
WRAPPED = (
    "%s = ((f32[4]{0}), f32[4]{0}) async-start(%x), calls=%a",
    "%u = ((f32[4]{0}), f32[4]{0}) async-update(%s)",
)
ASYNC_DONE = "%d = f32[4]{0} all-gather-done(%s)"


@pytest.mark.parametrize(
    ("lines", "total"),
    [
        ((f"{ASYNC}, {cycles(40)}", f"{ASYNC_DONE}, {cycles(40)}"), 40),
        ((f"{ASYNC}, {cycles(40)}", ASYNC_DONE), 40),
        ((ASYNC, f"{ASYNC_DONE}, {cycles(40)}"), 40),
        ((*WRAPPED, f"%d = f32[4]{{0}} async-done(%u), {cycles(30)}"), 30),
        (("%c = f32[4]{0} conditional(%i, %x, %x), branch_computations={%a, %b}",), 50),
    ],
    ids=["both", "start", "done", "wrapped", "costliest branch"],
)
def test_async_pairs_count_once_and_only_the_costliest_branch(lines, total):
    steps, _ = hlo.executed(hlo.parse(entry(*lines)))
    assert hlo.total_cycles(steps) == total


def test_an_async_collective_is_one_row_and_copies_are_separate():
    text = entry(
        "%x = bf16[4,8]{1,0} parameter(0)",
        "%s = (bf16[4,8]{1,0}, bf16[32,8]{1,0}) all-gather-start(%x), channel_id=2",
        "%d = bf16[32,8]{1,0} all-gather-done(%s)",
        "%c = (bf16[4,8]{1,0:S(1)}, bf16[4,8]{1,0}, u32[]{:S(2)}) copy-start(%x)",
        "%e = bf16[4,8]{1,0:S(1)} copy-done(%c)",
        "%t = ((bf16[4,8]{1,0}), bf16[2,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:2], [0:8]}",
        "%f = bf16[2,8]{1,0:S(1)} slice-done(%t)",
    )
    costs = account_of(text, "resnet50")
    assert [(row["opcode"], row["bytes"]) for row in costs.collectives] == [("all-gather-start", 32 * 8 * 2)]
    assert (costs.async_copies["count"], costs.async_copies["bytes"]) == (2, 64 + 32)
    assert costs.without_figure == []


def test_a_psum_is_named_by_the_part_that_it_sums():
    """As under `shard_map`; operands of both ends of a loop's tuple may be fusions, or taken out of one."""
    psum = named("jit(train_step)/shard_map/psum")
    text = entry(
        "%x = f32[8]{0} parameter(0)",
        f"%f = bf16[3,4]{{1,0}} fusion(%x), calls=%a, {CONV2}",
        f"%g = f32[8]{{0}} negate(%x), {named(f'{BACKWARD}/stem_conv/conv')}",
        f"%sum = (f32[8]{{0}}, /*index=1*/bf16[3,4]{{1,0}}) all-reduce(%g, %f), channel_id=1, {psum}",
        f"%one = bf16[3,4]{{1,0}} get-tuple-element(%sum), index=1, {psum}",
        f"%zero = f32[8]{{0}} get-tuple-element(%sum), index=0, {psum}",
        f"%alone = f32[8]{{0}} all-reduce(%g), channel_id=2, {psum}",
    )
    costs = account_of(text)
    assert [row["parts"] for row in costs.collectives] == [
        {"stem backward": 32, "grouped 3x3 backward": 24},
        {"stem backward": 32},
    ]


@pytest.mark.parametrize(
    ("collective", "sent", "received"),
    [
        ("(f32[32,8]{1,0}, f32[4,8]{1,0}) reduce-scatter-start", 32 * 8, 4 * 8),
        ("((f32[32,8]{1,0}), f32[32,8]{1,0}, u32[], u32[]) all-to-all-start", 32 * 8, 32 * 8),
        ("(f32[32,8]{1,0}, f32[32,8]{1,0}, u32[], u32[]) collective-permute-start", 32 * 8, 32 * 8),
        ("f32[32,8]{1,0} all-reduce-start", 32 * 8, 32 * 8),
    ],
)
def test_an_async_collective_counts_sent_and_received_separately(collective, sent, received):
    costs = account_of(entry("%x = f32[32,8]{1,0} parameter(0)", f"%s = {collective}(%x)"), "resnet50")
    assert costs.collective_bytes == 4 * max(sent, received)


def test_collectives_of_one_channel_are_all_counted():
    text = entry(
        "%x = bf16[4,8]{1,0} parameter(0)",
        "%y = f32[16]{0} parameter(1)",
        "%s = bf16[4,8]{1,0} all-reduce(%x), channel_id=1",
        "%t = f32[16]{0} all-reduce(%y), channel_id=1",
    )
    costs = account_of(text, "resnet50")
    assert [row["bytes"] for row in costs.collectives] == [64, 64]


def test_a_custom_call_is_never_free():
    """By hand, v5e: 2 MiB at 819 GB/s are 2.56 us or 3841 cycles of 1.5 GHz; 394 G flops at 197 T/s are 2 ms."""
    kernel = '%k = f32[1024,256]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="'
    kernel += f'{FORWARD}/stage2/block1/conv2/pallas_call"}}, backend_config={{"custom_call_config":{{"body":"QUJD"'
    text = entry(
        "%x = f32[1024,256]{1,0} parameter(0)",
        kernel + "}}",
        kernel.replace("%k", "%l") + ',"cost_estimate":{"flops":"394000000000","bytes_accessed":"4096"}}}',
        '%m = f32[1024,256]{1,0} custom-call(), custom_call_target="AllocateBuffer"',
    )
    costs = account_of(text)
    by_shape, stated = costs.custom_calls
    assert (by_shape["bytes"], by_shape["flops"], by_shape["part"]) == (2 * 2**20, None, "grouped 3x3")
    assert by_shape["floor_cycles"] == pytest.approx(3841, abs=1)
    assert (stated["bytes"], stated["flops"], stated["floor_cycles"]) == (4096, 394_000_000_000, 3_000_000)
    assert costs.estimated_cycles == 0
    assert costs.floor_cycles == by_shape["floor_cycles"] + stated["floor_cycles"]
    assert "tpu_custom_call" in table(costs, CHIPS["v5e"])


def test_what_has_no_figure_is_listed_by_opcode_and_part():
    """The gradient of max-pooling, for one: (1 + 2) MiB at 819 GB/s and 1.5 GHz are 5761 cycles."""
    text = entry(
        "%x = f32[1024,256]{1,0} parameter(0)",
        f'%s = bf16[2048,512]{{1,0}} select-and-scatter(%x), metadata={{op_name="{BACKWARD}/select_and_scatter"}}',
    )
    (row,) = account_of(text, "resnet50").without_figure
    assert row == {"opcode": "select-and-scatter", "part": "pooling", "count": 1, "bytes": 3 * 2**20} | {
        "floor_cycles": 5761
    }


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[32,56,56,128]{3,0,2,1:T(8,128)(2,1)S(1)}", 32 * 56 * 56 * 128 * 2),
        ("(f32[8]{0:T(128)}, s32[]{:T(128)}, pred[3]{0})", 32 + 4 + 3),
        ("f8e4m3fn[10]", 10),
        ("u4[3]", 2),
        ("token[]", 0),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert hlo.num_bytes(shape) == size


@pytest.mark.parametrize(
    ("op_name", "network", "part", "direction"),
    [
        (f"{FORWARD}/stem_conv/conv_general_dilated", "resnet50", "stem", "forward"),
        (f"{FORWARD}/jit(relu)/max", "resnet50", "stem", "forward"),
        (f"{FORWARD}/reduce_window_max", "resnet50", "pooling", "forward"),
        (f"{BACKWARD}/select_and_scatter", "resnet50", "pooling", "backward"),
        (f"{FORWARD}/stage3/block1/conv1/conv", "resnet50", "1x1", "forward"),
        (f"{FORWARD}/stage3/block1/conv1/conv", "resnet18", "3x3", "forward"),
        (f"{BACKWARD}/stage3/block1/conv2/conv", "resnet50", "3x3", "backward"),
        (f"{BACKWARD}/stage3/block1/conv2/conv", "resnext50_32x4d", "grouped 3x3", "backward"),
        (f"{BACKWARD}/stage3/block1/shortcut_bn/mul", "resnet50", "shortcut", "backward"),
        (f"{FORWARD}/stage3/block1/jit(relu)/max", "resnet50", "add and ReLU", "forward"),
        (f"{FORWARD}/classifier/dot_general", "resnet50", "classifier", "forward"),
        ("jit(train_step)/transpose(jvp(loss))/mul", "resnet50", "classifier", "backward"),
        ("jit(train_step)/jvp(augment)/vmap()/div", "resnet50", "input", "forward"),
        ("jit(train_step)/while/body/closed_call/augment/vmap()/add", "resnet50", "input", "forward"),
        ("jit(train_step)/update/mul", "resnet50", "optimizer", "update"),
        ("", "resnet50", "other", "other"),
    ],
)
def test_parts_and_directions(op_name, network, part, direction):
    assert part in PARTS
    assert (part_of(op_name, ARCHS[network]), direction_of(op_name)) == (part, direction)


@pytest.mark.parametrize(
    ("path", "network", "part"),
    [
        ("ResNeXt/stage2/block1/conv3/conv_general_dilated", "resnext50_32x4d", "1x1"),
        # A 1x1 and its batch norm computed as one.
        ("ResNeXt/stage2/block1/conv3/bn3/conv_general_dilated", "resnext50_32x4d", "1x1"),
        ("ResNeXt/stage2/block1/conv3/bn3/dot_general", "resnext50_32x4d", "1x1"),
        ("ResNeXt/stage2/block1/conv2/bn2/reduce_sum", "resnext50_32x4d", "BN"),
        ("ResNeXt/stage2/block1/conv2/conv_general_dilated", "resnext50_32x4d", "grouped 3x3"),
        ("ResNeXt/stage2/block1/shortcut_conv/shortcut_bn/dot_general", "resnext50_32x4d", "shortcut"),
        ("ResNeXt/stem_conv/stem_bn/mul", "resnext50_32x4d", "stem"),
        ("ResNeXt/stage2/block2/bn1/mul", "resnet200", "BN"),
        ("ResNeXt/stage2/block2/jit(relu)/max", "resnet200", "add and ReLU"),
        ("ResNeXt/stage3/block1/shortcut_conv/conv_general_dilated", "resnet200", "shortcut"),
        ("ResNeXt/final_bn/mul", "resnet200", "BN"),
        ("ResNeXt/final_bn/jit(relu)/max", "resnet200", "BN"),
        ("ResNeXt/stage2/block1/conv2/conv_general_dilated", "wrn28_10", "3x3"),
        ("Vgg/stage2/conv1/conv_general_dilated", "vgg11", "3x3"),
        ("Vgg/hidden1/dot_general", "vgg11", "classifier"),
        ("Vgg/jit(relu)/max", "vgg11", "classifier"),
        ("DenseNet/stage2/layer1/conv1/conv_general_dilated", "densenet121", "1x1"),
        ("DenseNet/stage2/layer1/conv2/conv_general_dilated", "densenet121", "3x3"),
        ("DenseNet/stage3/transition/conv1/conv_general_dilated", "densenet121", "1x1"),
        ("DenseNet/reduce_window_max", "densenet121", "pooling"),
    ],
)
@pytest.mark.parametrize("outer", ["jit(train_step)", "jit(train_step)/shard_map"])
def test_parts_by_the_path_of_an_operation(outer, path, network, part):
    assert part_of(f"{outer}/jvp({path.replace('/', ')/', 1)}", ARCHS[network]) == part
