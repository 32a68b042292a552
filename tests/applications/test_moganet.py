"""MogaNet against numbers of its authors' code."""

from pathlib import Path

import numpy as np
from keras import ops

from keras_convnets.applications.moganet import MultiOrderConv
from keras_convnets.testing.golden import Golden, GoldenTests, fan_out


class TestMogaNet(GoldenTests):
    family = "moganet"
    reference = Golden(Path(__file__).parent / "data/moganet")
    initial = [
        (r"layer_scale_|sigma", None),
        (r"DW_conv|dwconv", lambda shape: fan_out((1, *shape[1:]))),
        (r"^patch_embed|^blocks", fan_out),
        (r"^head", 0.02),
    ]
    # A residual sum is before them, and what they give is added to or padded.
    keeps_batchnorm = r"_norm1$|stage[1-3]_norm$"

    def test_the_channels_see_5_13_and_23_pixels(self):
        """Figure 4b: three orders of context, of 1/8, 3/8 and 4/8 of the channels."""
        layer = MultiOrderConv(8)
        layer.build((None, 33, 33, 8))
        for part in (layer.depthwise0, layer.depthwise1, layer.depthwise2):
            part.kernel.assign(np.ones(part.kernel.shape))
        layer.mix.kernel.assign(np.eye(8)[None, None])
        impulse = np.zeros((1, 33, 33, 8), "float32")
        impulse[:, 16, 16] = 1
        seen = ops.convert_to_numpy(layer(impulse))[0] != 0
        for axes in ((0, 2), (1, 2)):
            extents = [np.ptp(np.nonzero(seen[..., c].any(axes[0]))[0]) + 1 for c in range(8)]
            assert extents == [5, 13, 13, 13, 23, 23, 23, 23]
