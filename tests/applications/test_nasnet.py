"""NASNet-A against timm, and its mobile form against keras.applications."""

import re
from functools import partial

import keras
import numpy as np

from keras_convnets import create_model
from keras_convnets.applications.base import ConvNet
from keras_convnets.applications.nasnet import nasnet as taps_of
from keras_convnets.graph.rewrite import without_allocation
from keras_convnets.testing.conformance import FamilyTests, assert_close, images, run
from keras_convnets.testing.reference import Timm
from keras_convnets.testing.seeded import seeded_state
from keras_convnets.weights.state import load_state_dict, slots

DEPTH = 6  # of timm's network


def nasnet(width, depth, stem_width):
    """timm's cells, `depth` in a stage; the first takes the map that was reduced before it."""
    from timm.models.nasnet import ActConvBn, NASNetALarge
    from torch.nn.functional import relu

    class NASNet(NASNetALarge):
        def __init__(self):
            super().__init__(stem_size=stem_width, num_features=24 * width)
            cells = [self._modules.pop(f"cell_{i}") for i in range(3 * DEPTH)]
            for i in range(3 * depth):
                self.add_module(f"cell_{i}", cells[i // depth * DEPTH + i % depth])
            if depth == 1:  # then the cell before those that reduce is no normal one
                self.reduction_cell_0.conv_prev_1x1 = ActConvBn(2 * width, 2 * width, 1)
                self.reduction_cell_1.conv_prev_1x1 = ActConvBn(8 * width, 4 * width, 1)

        def forward_intermediates(self, x, intermediates_only):
            before = self.conv0(x)
            x = self.cell_stem_0(before)
            taps = [before, relu(x)]
            before, x = x, self.cell_stem_1(before, x)
            for stage in range(3):
                if stage:
                    before, x = x, getattr(self, f"reduction_cell_{stage - 1}")(x, before)
                for i in range(stage * depth, (stage + 1) * depth):
                    before, x = x, getattr(self, f"cell_{i}")(x, before)
                taps.append(relu(x))
            return taps

        def forward_features(self, x):
            return self.forward_intermediates(x, True)[-1]

    return NASNet()


def compare_with_keras(width, depth, stem_width, size):
    """All taps, with weights copied layer by layer; such as 44, 4 and 32 for the mobile network."""
    from keras.src.applications.nasnet import NASNet

    shape = (size, size, 3)
    image = keras.Input(shape)
    ours = ConvNet(image, list(taps_of(image, width, depth, stem_width)))
    ours.variant = "nasnet_test"  # any: its names are the published ones
    state = seeded_state({key: slot.shape for key, slot in slots(ours).items()})
    for key in state:
        if re.search(r"(stem|reduction).*conv_1x1\.bn\.(weight|bias)", key):
            state[key] = state[key] * 0.03 + 3 * key.endswith("bias")
    load_state_dict(ours, state)
    theirs = NASNet(shape, 24 * width, depth, stem_width, False, 2, False, None, default_size=size)
    variables = {key: np.array(slot.variable) for key, slot in slots(ours).items()}
    for layer in theirs.layers:
        if layer.weights:
            place = published(layer.name, depth, variables)
            layer.set_weights([variables.pop(f"{place}.{part}") for part in PARTS[type(layer)]])
    assert not variables
    ends = [f"normal_concat_{(stage + 1) * depth - (stage == 0)}" for stage in range(3)]
    names = ["stem_bn1", "reduction_concat_stem_1", *ends]
    theirs = keras.Model(theirs.input, [theirs.get_layer(name).output for name in names])
    x = images(2, *shape)
    for i, (tap, expected) in enumerate(zip(run(ours, x), run(theirs, x), strict=True)):
        expected = np.maximum(expected, 0) if i else expected
        assert_close(tap, expected, 1e-5, f"tap {i}")


PARTS = {
    keras.layers.BatchNormalization: ("weight", "bias", "running_mean", "running_var"),
    keras.layers.Conv2D: ("weight",),
    keras.layers.SeparableConv2D: ("depthwise_conv2d.weight", "pointwise_conv2d.weight"),
}


def published(name, depth, variables):
    """The published name of a layer of keras.applications, one that has `variables`."""
    what, kind, number = re.fullmatch(r"(.*?)_?(stem_|reduce_|)(\d+)", name).groups()
    number = int(number)
    if name.startswith("stem"):
        return name.replace("stem_", "conv0.").removesuffix("1")
    cell = f"cell_{number - (number > depth)}"
    if kind:
        cell = f"cell_stem_{number - 1}"
        cell = f"reduction_cell_{number // depth - 1}" if kind == "reduce_" else cell
    if what == "adjust_bn":
        halves = f"{cell}.final_path_bn.weight" in variables
        return f"{cell}.final_path_bn" if halves else f"{cell}.conv_prev_1x1.bn"
    branch = re.fullmatch(r"separable_conv_(\d)_(bn_)?\w+_(left|right)(\d)", what)
    if branch:
        step, norm, side, pair = branch.groups()
        # The fifth pair of a reduction has the name of the fourth.
        pair = 5 if "reduction_left4" in what else int(pair)
        place = "bn_sep" if norm else "separable"
        return f"{cell}.comb_iter_{pair - 1}_{side}.{place}_{step}"
    for pattern, place in (
        ("adjust_conv_projection", "conv_prev_1x1.conv"),
        (r"adjust_conv_(\d)", r"path_\1.conv"),
        (r"\w+_(conv|bn)_1", r"conv_1x1.\1"),
    ):
        what = re.sub(f"^{pattern}$", place, what)
    return f"{cell}.{what}"


class TestNASNet(FamilyTests):
    family = "nasnet"
    reference = Timm(nasnetamobile=partial(nasnet, 44, 4, 32), nasnet_test=partial(nasnet, 4, 1, 8))
    parity_variant = "nasnetamobile"
    # Open: as a depthwise convolution of ninths it trains, but a map of the file is 5 steps off
    # unless all tensors are outputs.
    without_integers = {"nasnet_test": ["HalvingAverage"]}
    default_checkpoint = "nasnetalarge.tf_in1k"
    # Between a concatenation and several operations.
    keeps_batchnorm = r"fit_final_norm$"

    def test_a_cell_after_a_reduction_takes_the_map_before_the_one_that_was_reduced(self):
        """In the large network; the parity of the mobile one shows that there it takes that."""
        with without_allocation():
            model = create_model("nasnetalarge", weights=None)
        maps = model.get_layer("cell_12").input
        names = [x._keras_history.operation.name for x in maps]
        assert names == ["reduction_cell_1", "cell_10"]

    def test_keras_applications_has_the_same_maps_where_they_are_positive(self):
        """Its maxima are of zeros around the map too, so what is pooled here is above them."""
        if keras.backend.backend() != "tensorflow":
            return  # it refuses torch, and JAX compiles both for half a minute
        compare_with_keras(4, 2, 8, 64)
