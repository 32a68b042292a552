"""ResNets, ViTs and PiTs with max pooling against numbers of the official code."""

from pathlib import Path

import keras

from keras_convnets import create_model
from keras_convnets.layers import PositionEmbedding2D
from keras_convnets.testing.conformance import assert_close, images
from keras_convnets.testing.golden import Golden, GoldenTests, torch_default

# Side of the map, its channels, and blocks with attention, by stage.
ATTENTION = {
    "vit_ti_max": [(14, 192, 6)],
    "vit_s_max": [(14, 384, 6)],
    "vit_b_max": [(14, 768, 6)],
    "pit_ti_max": [(27, 64, 1), (14, 128, 3), (7, 256, 2)],
    "pit_s_max": [(27, 144, 1), (14, 288, 3), (7, 576, 2)],
    "pit_b_max": [(31, 256, 2), (16, 512, 3), (8, 1024, 2)],
}


class GoldenWithAttention(Golden):
    """The official code's counts lack the two products of each attention, which PyTorch fuses."""

    def facts(self, variant, size):
        shapes, parameters, macs = super().facts(variant, size)
        products = [2 * side**4 * width * n for side, width, n in ATTENTION.get(variant, [])]
        return shapes, parameters, macs and macs + sum(products)


class TestPfNet(GoldenTests):
    family = "pfnet"
    twins = ("vit_max_test",)
    reference = GoldenWithAttention(
        Path(__file__).parent / "data/pfnet",
        taps={
            "resnet": (None, 0, 1, 2, 3),
            "vit_max_test": (None,),
            "vit": (12,),  # after the patch embedding and twelve blocks
            "pit_max_test": (0, 1),
            "pit": (1, 2, 3),
        },
    )
    # Of the smallest variant, a PiT.
    initial = [("pos_embed", 0.02), ("weight", torch_default)]
    unpadded = 8  # by PiT's first convolution
    # Their operators are no layers with integers: the positions are added by a layer of their own.
    without_integers = {
        "vit_max_test": ["PositionEmbedding2D"],
        "pit_max_test": ["PositionEmbedding2D"],
    }

    def test_every_second_block_of_a_transformer_has_no_attention(self):
        model = create_model("pit_s_max", weights=None)
        kinds = [type(model.get_layer(f"stage1_block{i}").mixer).__name__ for i in range(6)]
        assert kinds == ["SelfAttention2D", "MaxPoolMixer"] * 3

    def test_positions_are_interpolated_as_by_pytorch(self):
        """To larger and smaller maps; the map itself where the size is its own."""
        import torch

        table = images(6, 6, 5)
        for height, width in ((6, 6), (6, 9), (11, 4)):
            x = images(1, height, width, 5)
            layer = PositionEmbedding2D(6, "map")
            layer.build(x.shape)
            layer.table.assign(table)
            maps = torch.from_numpy(table.transpose(2, 0, 1)[None])
            expected = torch.nn.functional.interpolate(maps, (height, width), mode="bicubic")
            expected = x + expected.numpy().transpose(0, 2, 3, 1)
            ours = keras.ops.convert_to_numpy(layer(x))
            assert_close(ours, expected, 1e-6, f"{height} x {width}")
