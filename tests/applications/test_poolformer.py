"""PoolFormer V1 and V2, IdentityFormer and RandFormer against timm."""

import keras
import numpy as np
import pytest

from keras_convnets.applications.base import create_model
from keras_convnets.layers import PoolMixer2D, RandomMixer2D
from keras_convnets.testing.conformance import FamilyTests, images
from keras_convnets.testing.reference import Timm
from keras_convnets.weights import as_published, state_dict

SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
DEPTHS = dict(s12=(2, 2, 6, 2), s24=(4, 4, 12, 4), s36=(6, 6, 18, 6))
DEPTHS |= dict(m36=(6, 6, 18, 6), m48=(8, 8, 24, 8))
WIDTHS = dict(s=(64, 128, 320, 512), m=(96, 192, 384, 768))


def poolformer_test():
    import torch
    from timm.models.metaformer import GroupNorm1, MetaFormer

    return MetaFormer(
        **SMALL,
        downsample_norm=None,
        mlp_act=torch.nn.GELU,
        mlp_bias=True,
        norm_layers=GroupNorm1,
        layer_scale_init_values=1e-5,
        res_scale_init_values=None,
        use_mlp_head=False,
    )


def rows(positions=(None,) * 4, depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)):
    """timm's MetaFormer with the authors' two other mixers: the identity and, for a number of
    `positions`, a random matrix. As in their files, maps are rows of tokens."""
    import torch
    from timm.models.metaformer import Attention, GroupNorm1NoBias, MetaFormer

    class Mixer(Attention):  # timm gives the subclasses of this one rows
        def __init__(self, dim, proj_drop=0.0, device=None, dtype=None):
            torch.nn.Module.__init__(self)
            if self.positions:
                matrix = torch.rand(self.positions, self.positions).softmax(-1)
                self.register_buffer("random_matrix", matrix)

        def forward(self, x):
            return self.random_matrix @ x if self.positions else x

    class Norm(GroupNorm1NoBias):
        def forward(self, x):
            return super().forward(x.transpose(1, 2)).transpose(1, 2)

    return MetaFormer(
        depths=depths,
        dims=dims,
        token_mixers=[type("Mixer", (Mixer,), {"positions": n}) for n in positions],
        norm_layers=Norm,
        use_mlp_head=False,
    )


class Reference(Timm):
    pixels = 224**2

    def create(self, variant):
        kind, _, size = variant.partition("_")
        if kind.startswith("poolformer"):
            return super().create(variant)
        if kind == "identityformer":
            return rows(depths=DEPTHS[size], dims=WIDTHS[size[0]])
        positions = (None, None, self.pixels // 16**2, self.pixels // 32**2)
        if size == "test":
            return rows(positions)
        return rows(positions, DEPTHS[size], WIDTHS[size[0]])

    def facts(self, variant, size):
        self.pixels = size**2
        return super().facts(variant, size)

    def run(self, variant, state, images):
        self.pixels = images.shape[1] * images.shape[2]
        return super().run(variant, state, images)


class TestPoolFormer(FamilyTests):
    family = "poolformer"
    reference = Reference(
        poolformer_test=poolformer_test,
    )
    parity_variant = "poolformerv2_s12"
    # As sums and products in integers, these gave a file up to 19 steps off the quantized model.
    without_integers = {
        "poolformer_test": ["GroupNormalization"],
        "randformer_test": ["GroupNormalization"],
    }

    def test_pooling_gives_the_mean_of_the_neighbours_inside_less_the_pixel(self):
        """Equation 4 of the first paper."""
        x = images(2, 4, 5, 3)
        expected = np.empty_like(x)
        for i in range(4):
            for j in range(5):
                window = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
                expected[:, i, j] = window.mean((1, 2)) - x[:, i, j]
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(PoolMixer2D()(x)), expected, atol=1e-6
        )

    def test_a_random_mixer_averages_over_all_positions_and_is_not_trained(self):
        x = images(2, 4, 5, 3)
        mixer = RandomMixer2D()
        y = keras.ops.convert_to_numpy(mixer(x))
        assert mixer.trainable_variables == []
        matrix = keras.ops.convert_to_numpy(mixer.random_matrix.kernel)
        np.testing.assert_allclose(matrix.sum(0), 1, rtol=1e-5)
        assert (matrix.max(0) / matrix.min(0) < np.e).all()
        np.testing.assert_allclose(y.reshape(2, 20, 3), matrix.T @ x.reshape(2, 20, 3), atol=1e-6)

    def test_a_random_former_takes_images_of_its_one_size(self):
        model = create_model("randformer_test", weights=None, input_shape=(64, 64, 3))
        state = state_dict(model)
        assert create_model("randformer_test", weights=None, include_top=False).output.shape[1] == 7
        with pytest.raises(ValueError, match=r"shape: stages\.2\.blocks\.0\.token_mixer"):
            create_model("randformer_test", weights=state, input_shape=(96, 96, 3))

    def test_the_authors_files_name_weights_otherwise(self):
        names = {
            "downsample_layers.0.conv.bias": "stem.conv.bias",
            "downsample_layers.0.post_norm.weight": "stem.norm.weight",
            "downsample_layers.2.pre_norm.weight": "stages.2.downsample.norm.weight",
            "stages.2.10.token_mixer.random_matrix": "stages.2.blocks.10.token_mixer.random_matrix",
            "stages.3.0.res_scale2.scale": "stages.3.blocks.0.res_scale2.scale",
            "norm.bias": "head.norm.bias",
            "head.weight": "head.fc.weight",
        }
        state = as_published("randformer_s24", {name: np.zeros(1) for name in names})
        assert list(state) == list(names.values())
        again = as_published("randformer_s24", state)
        assert list(again) == list(state)
