"""PoolFormer, IdentityFormer and RandFormer: MetaFormers whose token mixers have nothing to learn.

Papers: https://arxiv.org/abs/2111.11418 (PoolFormer: each pixel becomes the mean of its neighbours)
and https://arxiv.org/abs/2210.13452 (its second version, with StarReLU; the identity; and, in the
last two stages, a frozen random matrix over all positions, so that a RandFormer is made for images
of one size). Differs from the reference: nothing.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.metaformer import FULL, KEYS, LAYOUTS, metaformer, shrink
from keras_convnets.layers import Block, DropPath, LayerScale, PoolMixer2D, stochastic_depth
from keras_convnets.layers.fast import Activation, LayerNormalization
from keras_convnets.layers.initializers import NORMAL_02
from keras_convnets.layers.metaformer import RandomMatrix, pointwise
from keras_convnets.registry import Checkpoint, family

NARROW, WIDE = (64, 128, 320, 512), (96, 192, 384, 768)
SIZES = {
    "s12": dict(depths=(2, 2, 6, 2), widths=NARROW),
    "s24": dict(depths=(4, 4, 12, 4), widths=NARROW),
    "s36": dict(depths=(6, 6, 18, 6), widths=NARROW),
    "m36": dict(depths=(6, 6, 18, 6), widths=WIDE),
    "m48": dict(depths=(8, 8, 24, 8), widths=WIDE),
}
POOL = dict(mixers=("pool",) * 4)
IDENTITY = dict(mixers=("identity",) * 4, mlp="dense")
RANDOM = dict(mixers=("identity", "identity", "random", "random"), mlp="dense")
VARIANTS = {
    **{f"poolformer_{size}": SIZES[size] | {"layer_scale": 1e-5} for size in ("s12", "s24")},
    **{f"poolformer_{size}": SIZES[size] | {"layer_scale": 1e-6} for size in ("s36", "m36", "m48")},
    **{f"poolformerv2_{size}": SIZES[size] | POOL for size in SIZES},
    **{f"identityformer_{size}": SIZES[size] | IDENTITY for size in SIZES},
    **{f"randformer_{size}": SIZES[size] | RANDOM for size in SIZES},
    "poolformer_test": dict(depths=(1, 1, 2, 1), widths=(8, 16, 24, 32), layer_scale=1e-5),
    "randformer_test": dict(depths=(1, 1, 2, 1), widths=(8, 16, 24, 32)) | RANDOM,
}
SAIL = "https://huggingface.co/sail/dl/resolve/main"
WEIGHTS = {
    "poolformer_s12.sail_in1k": Checkpoint("apache-2.0", crop=0.9, top1=77.2),
    "poolformer_s24.sail_in1k": Checkpoint("apache-2.0", crop=0.9, top1=80.3),
    "poolformer_s36.sail_in1k": Checkpoint("apache-2.0", crop=0.9, top1=81.4),
    "poolformer_m36.sail_in1k": Checkpoint("apache-2.0", crop=0.95, top1=82.1),
    "poolformer_m48.sail_in1k": Checkpoint("apache-2.0", crop=0.95, top1=82.5),
    "poolformerv2_s12.sail_in1k": Checkpoint(**FULL, top1=78.0),
    "poolformerv2_s24.sail_in1k": Checkpoint(**FULL, top1=80.7),
    "poolformerv2_s36.sail_in1k": Checkpoint(**FULL, top1=81.6),
    "poolformerv2_m36.sail_in1k": Checkpoint(**FULL, top1=82.2),
    "poolformerv2_m48.sail_in1k": Checkpoint(**FULL, top1=82.6),
    "identityformer_s12.sail_in1k": Checkpoint(
        **FULL, source=f"{SAIL}/identityformer/identityformer_s12.pth", top1=74.6
    ),
    "identityformer_s24.sail_in1k": Checkpoint(
        **FULL, source=f"{SAIL}/identityformer/identityformer_s24.pth", top1=78.2
    ),
    "identityformer_s36.sail_in1k": Checkpoint(
        **FULL, source=f"{SAIL}/identityformer/identityformer_s36.pth", top1=79.3
    ),
    "identityformer_m36.sail_in1k": Checkpoint(
        **FULL, source=f"{SAIL}/identityformer/identityformer_m36.pth", top1=80.0
    ),
    "identityformer_m48.sail_in1k": Checkpoint(
        **FULL, source=f"{SAIL}/identityformer/identityformer_m48.pth", top1=80.4
    ),
    "randformer_s12.sail_in1k": Checkpoint(
        **FULL, source=f"{SAIL}/randformer/randformer_s12.pth", top1=76.6
    ),
    "randformer_s24.sail_in1k": Checkpoint(
        **FULL, source=f"{SAIL}/randformer/randformer_s24.pth", top1=78.2
    ),
    "randformer_s36.sail_in1k": Checkpoint(
        **FULL, source=f"{SAIL}/randformer/randformer_s36.pth", top1=79.5
    ),
    "randformer_m36.sail_in1k": Checkpoint(
        **FULL, source=f"{SAIL}/randformer/randformer_m36.pth", top1=81.2
    ),
    "randformer_m48.sail_in1k": Checkpoint(
        **FULL, source=f"{SAIL}/randformer/randformer_m48.pth", top1=81.4
    ),
}
KEYS = [
    *(rule for rule in KEYS if rule[0] != r"^head$"),
    (r"^head$", "head.fc"),
]
RENAMES = [  # of the authors' own files
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"\.(pre|post)_norm\.", ".norm."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class PoolFormerBlock(Block):
    """x + scale(mixer(norm(x))), then x + scale(fc2(gelu(fc1(norm(x))))): algorithm 1 and figure 2
    of the first paper.

    Input and output: (batch, height, width, width_of_stage). `layer_scale`: the start value of
    both scales; `drop_path`: rate of stochastic depth. The norms are over all values of a map.
    """

    def __init__(self, width: int, layer_scale: float = 1e-5, drop_path: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.norm1 = keras.layers.GroupNormalization(1, epsilon=1e-5)
        self.mixer = PoolMixer2D()
        self.layer_scale1 = LayerScale(layer_scale)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = keras.layers.GroupNormalization(1, epsilon=1e-5)
        self.fc1 = pointwise(4 * width, "conv", use_bias=True)
        self.activation = Activation("gelu")
        self.fc2 = pointwise(width, "conv", use_bias=True)
        self.layer_scale2 = LayerScale(layer_scale)
        self.drop_path2 = DropPath(drop_path)

    def call(self, x):
        x = x + self.drop_path1(self.layer_scale1(self.mixer(self.norm1(x))))
        y = self.fc2(self.activation(self.fc1(self.norm2(x))))
        return x + self.drop_path2(self.layer_scale2(y))


def pre_logits(x):
    return LayerNormalization(epsilon=1e-6, name="head_norm")(x)


@family(
    VARIANTS,
    WEIGHTS,
    KEYS,
    pre_logits=pre_logits,
    head_initializer=NORMAL_02,
    renames=RENAMES,
    layouts=LAYOUTS | {RandomMatrix: {"kernel": ("", (1, 0))}},
    fixed="randformer",
)
def poolformer(x, depths, widths, mixers=(), mlp="conv", layer_scale=None, drop_path_rate=0.0):
    """Yields the output of each stage: strides 4, 8, 16, 32.

    `mixers`, `mlp`: as in `metaformer`. `layer_scale`: as in `PoolFormerBlock`; `None` but in the
    first version.
    """
    if layer_scale is None:
        yield from metaformer(x, depths, widths, mixers, "map", mlp, drop_path_rate)
        return
    drop_path = stochastic_depth(drop_path_rate, depths)
    for stage, width in enumerate(widths):
        sizes = (3, 2, 1, f"stage{stage}_downsample") if stage else (7, 4, 2, "stem")
        x = shrink(x, width, *sizes)
        for i, rate in enumerate(drop_path[stage]):
            x = PoolFormerBlock(width, layer_scale, rate, name=f"stage{stage}_block{i}")(x)
        yield x


PoolFormerS12 = application("poolformer_s12")
PoolFormerS24 = application("poolformer_s24")
PoolFormerS36 = application("poolformer_s36")
PoolFormerM36 = application("poolformer_m36")
PoolFormerM48 = application("poolformer_m48")
PoolFormerV2S12 = application("poolformerv2_s12")
PoolFormerV2S24 = application("poolformerv2_s24")
PoolFormerV2S36 = application("poolformerv2_s36")
PoolFormerV2M36 = application("poolformerv2_m36")
PoolFormerV2M48 = application("poolformerv2_m48")
IdentityFormerS12 = application("identityformer_s12")
IdentityFormerS24 = application("identityformer_s24")
IdentityFormerS36 = application("identityformer_s36")
IdentityFormerM36 = application("identityformer_m36")
IdentityFormerM48 = application("identityformer_m48")
RandFormerS12 = application("randformer_s12")
RandFormerS24 = application("randformer_s24")
RandFormerS36 = application("randformer_s36")
RandFormerM36 = application("randformer_m36")
RandFormerM48 = application("randformer_m48")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
