"""FlashInternImage against numbers of the official code, with DCNv4 by its definition."""

from pathlib import Path

import keras
import numpy as np

from keras_convnets.layers import DCNv3, DCNv4
from keras_convnets.testing.conformance import images
from keras_convnets.testing.golden import Golden, GoldenTests, torch_default


class TestFlashInternImage(GoldenTests):
    family = "flash_intern_image"
    twins = ("flash_intern_image_post_test",)
    reference = Golden(
        Path(__file__).parent / "data/flash_intern_image", multipliers=("gamma1", "gamma2")
    )
    # It reads at computed places.
    without_integers = {
        "flash_intern_image_test": ["AggregateAtPoints"],
        "flash_intern_image_post_test": ["AggregateAtPoints"],
    }
    initial = [
        (r"offset_mask\.weight", None),
        (r"offset_mask_dw|patch_embed|downsample|conv_head", torch_default),
        (r"(value|output)_proj", lambda shape: (2 / sum(shape)) ** 0.5),
        (r"mlp|head", 0.02),
    ]

    def test_dcnv4_is_dcnv3_but_for_the_softmax(self):
        """Equal weights are 1/9 each after a softmax; without one, they are what they are."""
        x = images(2, 6, 7, 32)
        bounded, unbounded = DCNv3(32, groups=2), DCNv4(32, groups=2)
        for layer in (bounded, unbounded):
            layer.build(x.shape)
        for name in ("project_in", "project_out"):
            getattr(unbounded, name).set_weights(getattr(bounded, name).get_weights())
        for weight in (1 / 9, -2.0):
            kernel, _ = unbounded.offset_mask.get_weights()
            bias = np.append(np.tile([0.0] * 18 + [weight] * 9, 2), [0.0] * 2)
            unbounded.offset_mask.set_weights([kernel, bias])
            ours = keras.ops.convert_to_numpy(unbounded(x))
            expected = 9 * weight * keras.ops.convert_to_numpy(bounded(x))
            np.testing.assert_allclose(ours, expected, atol=1e-4)
