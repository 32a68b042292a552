"""ConvNeXt: a ResNet modernised step by step to a transformer's macro design, still convolutions.

Papers: https://arxiv.org/abs/2201.03545 (V1), https://arxiv.org/abs/2301.00808 (V2, where global
response normalisation replaces layer scale). Differs from the reference: nothing. Atto to nano are
timm's sizes, whose checkpoints store the MLP as 1x1 convolutions.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    DepthwiseConv2D,
    DropPath,
    GlobalResponseNorm,
    LayerScale,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation, Conv2D, Dense, LayerNormalization
from keras_convnets.layers.initializers import NORMAL_02
from keras_convnets.registry import Checkpoint, family

SIZES = {
    "atto": dict(depths=(2, 2, 6, 2), widths=(40, 80, 160, 320), mlp="conv"),
    "femto": dict(depths=(2, 2, 6, 2), widths=(48, 96, 192, 384), mlp="conv"),
    "pico": dict(depths=(2, 2, 6, 2), widths=(64, 128, 256, 512), mlp="conv"),
    "nano": dict(depths=(2, 2, 8, 2), widths=(80, 160, 320, 640), mlp="conv"),
    "tiny": dict(depths=(3, 3, 9, 3), widths=(96, 192, 384, 768)),
    "small": dict(depths=(3, 3, 27, 3), widths=(96, 192, 384, 768)),
    "base": dict(depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024)),
    "large": dict(depths=(3, 3, 27, 3), widths=(192, 384, 768, 1536)),
    "xlarge": dict(depths=(3, 3, 27, 3), widths=(256, 512, 1024, 2048)),
    "huge": dict(depths=(3, 3, 27, 3), widths=(352, 704, 1408, 2816)),
    "test": dict(depths=(1, 1, 2, 1), widths=(8, 16, 24, 32)),
}
VARIANTS = {
    **{f"convnext_{size}": SIZES[size] for size in SIZES if size != "huge"},
    **{f"convnextv2_{size}": SIZES[size] | {"version": 2} for size in SIZES if size != "xlarge"},
}
CLIP = dict(
    crop=1.0,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
SQUASH_384 = dict(input_size=384, crop=1.0, crop_mode="squash")
DINO_V3 = dict(license="dinov3-license", crop=1.0, labels=None)
EUPE = dict(license="fair-noncommercial-research-license", input_size=256, crop=1.0, labels=None)
APACHE = "apache-2.0"
NON_COMMERCIAL = "cc-by-nc-4.0"

WEIGHTS = {
    "convnext_atto.d2_in1k": Checkpoint(APACHE, top1=75.672),
    "convnext_femto.d1_in1k": Checkpoint(APACHE, top1=77.498),
    "convnext_pico.d1_in1k": Checkpoint(APACHE, top1=79.516),
    "convnext_nano.in12k_ft_in1k": Checkpoint(APACHE, crop=0.95, top1=82.306),
    "convnext_nano.d1h_in1k": Checkpoint(APACHE, crop=0.95, top1=80.762),
    "convnext_nano.in12k": Checkpoint(APACHE, crop=0.95, labels="imagenet-12k"),
    "convnext_nano.r384_ad_in12k": Checkpoint(
        APACHE, input_size=384, crop=1.0, labels="imagenet-12k"
    ),
    "convnext_nano.r384_in12k": Checkpoint(APACHE, input_size=384, crop=1.0, labels="imagenet-12k"),
    "convnext_nano.r384_in12k_ft_in1k": Checkpoint(APACHE, input_size=384, crop=1.0, top1=83.334),
    "convnext_tiny.in12k_ft_in1k": Checkpoint(APACHE, crop=0.95, top1=84.192),
    "convnext_tiny.dinov3_lvd1689m": Checkpoint(**DINO_V3),
    "convnext_tiny.eupe_lvd1689m": Checkpoint(**EUPE),
    "convnext_tiny.fb_in1k": Checkpoint(APACHE, top1=82.066),
    "convnext_tiny.fb_in22k": Checkpoint(APACHE, labels="imagenet-22k"),
    "convnext_tiny.fb_in22k_ft_in1k": Checkpoint(APACHE, top1=82.9),
    "convnext_tiny.fb_in22k_ft_in1k_384": Checkpoint(APACHE, **SQUASH_384, top1=84.098),
    "convnext_tiny.in12k": Checkpoint(APACHE, crop=0.95, labels="imagenet-12k"),
    "convnext_tiny.in12k_ft_in1k_384": Checkpoint(APACHE, **SQUASH_384, top1=85.154),
    "convnext_small.in12k_ft_in1k": Checkpoint(APACHE, crop=0.95, top1=85.164),
    "convnext_small.dinov3_lvd1689m": Checkpoint(**DINO_V3),
    "convnext_small.eupe_lvd1689m": Checkpoint(**EUPE),
    "convnext_small.fb_in1k": Checkpoint(APACHE, top1=83.144),
    "convnext_small.fb_in22k": Checkpoint(APACHE, labels="imagenet-22k"),
    "convnext_small.fb_in22k_ft_in1k": Checkpoint(APACHE, top1=84.582),
    "convnext_small.fb_in22k_ft_in1k_384": Checkpoint(APACHE, **SQUASH_384, top1=85.752),
    "convnext_small.in12k": Checkpoint(APACHE, crop=0.95, labels="imagenet-12k"),
    "convnext_small.in12k_ft_in1k_384": Checkpoint(APACHE, **SQUASH_384, top1=86.186),
    "convnext_base.fb_in22k_ft_in1k": Checkpoint(APACHE, top1=85.814),
    "convnext_base.clip_laion2b": Checkpoint(APACHE, input_size=256, **CLIP, labels=None),
    "convnext_base.clip_laion2b_augreg": Checkpoint(APACHE, input_size=256, **CLIP, labels=None),
    "convnext_base.clip_laion2b_augreg_ft_in12k": Checkpoint(
        APACHE, input_size=256, **CLIP, labels="imagenet-12k"
    ),
    "convnext_base.clip_laion2b_augreg_ft_in12k_in1k": Checkpoint(
        APACHE, input_size=256, **CLIP, top1=86.378
    ),
    "convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384": Checkpoint(
        APACHE, input_size=384, **CLIP, crop_mode="squash", top1=87.144
    ),
    "convnext_base.clip_laion2b_augreg_ft_in1k": Checkpoint(
        APACHE, input_size=256, **CLIP, top1=86.184
    ),
    "convnext_base.clip_laiona": Checkpoint(APACHE, input_size=256, **CLIP, labels=None),
    "convnext_base.clip_laiona_320": Checkpoint(APACHE, input_size=320, **CLIP, labels=None),
    "convnext_base.clip_laiona_augreg_320": Checkpoint(APACHE, input_size=320, **CLIP, labels=None),
    "convnext_base.clip_laiona_augreg_ft_in1k_384": Checkpoint(
        APACHE, input_size=384, **CLIP, top1=86.49
    ),
    "convnext_base.dinov3_lvd1689m": Checkpoint(**DINO_V3),
    "convnext_base.eupe_lvd1689m": Checkpoint(**EUPE),
    "convnext_base.fb_in1k": Checkpoint(APACHE, top1=83.838),
    "convnext_base.fb_in22k": Checkpoint(APACHE, labels="imagenet-22k"),
    "convnext_base.fb_in22k_ft_in1k_384": Checkpoint(APACHE, **SQUASH_384, top1=86.826),
    "convnext_large.fb_in22k_ft_in1k": Checkpoint(APACHE, top1=86.612),
    "convnext_large.dinov3_lvd1689m": Checkpoint(**DINO_V3),
    "convnext_large.fb_in1k": Checkpoint(APACHE, top1=84.304),
    "convnext_large.fb_in22k": Checkpoint(APACHE, labels="imagenet-22k"),
    "convnext_large.fb_in22k_ft_in1k_384": Checkpoint(APACHE, **SQUASH_384, top1=87.456),
    "convnext_xlarge.fb_in22k_ft_in1k": Checkpoint(APACHE, top1=86.97),
    "convnext_xlarge.fb_in22k": Checkpoint(APACHE, labels="imagenet-22k"),
    "convnext_xlarge.fb_in22k_ft_in1k_384": Checkpoint(APACHE, **SQUASH_384, top1=87.764),
    "convnextv2_atto.fcmae_ft_in1k": Checkpoint(NON_COMMERCIAL, top1=76.644),
    "convnextv2_atto.fcmae": Checkpoint(NON_COMMERCIAL, labels=None),
    "convnextv2_femto.fcmae_ft_in1k": Checkpoint(NON_COMMERCIAL, top1=78.476),
    "convnextv2_femto.fcmae": Checkpoint(NON_COMMERCIAL, labels=None),
    "convnextv2_pico.fcmae_ft_in1k": Checkpoint(NON_COMMERCIAL, top1=80.304),
    "convnextv2_pico.fcmae": Checkpoint(NON_COMMERCIAL, labels=None),
    "convnextv2_nano.fcmae_ft_in22k_in1k": Checkpoint(NON_COMMERCIAL, top1=82.038),
    "convnextv2_nano.fcmae": Checkpoint(NON_COMMERCIAL, labels=None),
    "convnextv2_nano.fcmae_ft_in1k": Checkpoint(NON_COMMERCIAL, top1=81.856),
    "convnextv2_nano.fcmae_ft_in22k_in1k_384": Checkpoint(
        NON_COMMERCIAL, **SQUASH_384, top1=83.366
    ),
    "convnextv2_tiny.fcmae_ft_in22k_in1k": Checkpoint(NON_COMMERCIAL, top1=83.904),
    "convnextv2_tiny.fcmae": Checkpoint(NON_COMMERCIAL, labels=None),
    "convnextv2_tiny.fcmae_ft_in1k": Checkpoint(NON_COMMERCIAL, top1=82.948),
    "convnextv2_tiny.fcmae_ft_in22k_in1k_384": Checkpoint(
        NON_COMMERCIAL, **SQUASH_384, top1=85.098
    ),
    "convnextv2_base.fcmae_ft_in22k_in1k": Checkpoint(NON_COMMERCIAL, top1=86.752),
    "convnextv2_base.fcmae": Checkpoint(NON_COMMERCIAL, labels=None),
    "convnextv2_base.fcmae_ft_in1k": Checkpoint(NON_COMMERCIAL, top1=84.89),
    "convnextv2_base.fcmae_ft_in22k_in1k_384": Checkpoint(
        NON_COMMERCIAL, **SQUASH_384, top1=87.638
    ),
    "convnextv2_large.fcmae_ft_in22k_in1k": Checkpoint(NON_COMMERCIAL, top1=87.266),
    "convnextv2_large.fcmae": Checkpoint(NON_COMMERCIAL, labels=None),
    "convnextv2_large.fcmae_ft_in1k": Checkpoint(NON_COMMERCIAL, top1=85.762),
    "convnextv2_large.fcmae_ft_in22k_in1k_384": Checkpoint(
        NON_COMMERCIAL, **SQUASH_384, top1=88.18
    ),
    "convnextv2_huge.fcmae_ft_in22k_in1k_384": Checkpoint(
        NON_COMMERCIAL, **SQUASH_384, top1=88.666
    ),
    "convnextv2_huge.fcmae": Checkpoint(NON_COMMERCIAL, labels=None),
    "convnextv2_huge.fcmae_ft_in1k": Checkpoint(NON_COMMERCIAL, top1=86.26),
    "convnextv2_huge.fcmae_ft_in22k_in1k_512": Checkpoint(
        NON_COMMERCIAL, input_size=512, crop=1.0, crop_mode="squash", top1=88.86
    ),
}
KEYS = [
    (r"^stem_conv", "stem.0"),
    (r"^stem_norm", "stem.1"),
    (r"^stage(\d)_block(\d+)", r"stages.\1.blocks.\2"),
    (r"^stage(\d)_downsample_norm", r"stages.\1.downsample.0"),
    (r"^stage(\d)_downsample_conv", r"stages.\1.downsample.1"),
    (r"/depthwise", "/conv_dw"),
    (r"/scale", ""),
    (r"/(fc1|grn|fc2)", r"/mlp/\1"),
    (r"^head_norm", "head.norm"),
    (r"^head$", "head.fc"),
]


def layer_norm(**kwargs):
    return LayerNormalization(epsilon=1e-6, **kwargs)


@keras.saving.register_keras_serializable("keras_convnets")
class ConvNeXtBlock(Block):
    """x + scale(fc2(gelu(fc1(norm(depthwise7x7(x)))))), figure 4 of V1; figure 5 of V2.

    Input and output: (batch, height, width, width_of_stage). `version` 2 normalises the hidden
    features by global response instead of scaling the output. `mlp`: `"dense"` or `"conv"`, whether
    checkpoints hold fc1 and fc2 as matrices or as 1x1 convolutions.
    """

    def __init__(
        self, width: int, version: int = 1, mlp: str = "dense", drop_path: float = 0.0, **kwargs
    ):
        super().__init__(**kwargs)
        self.depthwise = DepthwiseConv2D(7, depthwise_initializer=NORMAL_02)
        self.norm = layer_norm()
        self.fc1 = pointwise(4 * width, mlp)
        self.activation = Activation("gelu")
        self.grn = GlobalResponseNorm() if version == 2 else None
        self.fc2 = pointwise(width, mlp)
        self.scale = LayerScale(1e-6) if version == 1 else None
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        y = self.norm(self.depthwise(x))
        y = self.activation(self.fc1(y))
        y = self.fc2(self.grn(y) if self.grn else y)
        y = self.scale(y) if self.scale else y
        return x + self.drop_path(y)


def pointwise(width, mlp):
    """A linear map of the channels, as a matrix or as a 1x1 convolution."""
    if mlp == "conv":
        return Conv2D(width, 1, kernel_initializer=NORMAL_02)
    return Dense(width, kernel_initializer=NORMAL_02)


def pre_logits(x):
    return layer_norm(name="head_norm")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_logits=pre_logits, head_initializer=NORMAL_02)
def convnext(x, depths, widths, version=1, mlp="dense", drop_path_rate=0.0):
    """Yields the output of each stage: strides 4, 8, 16, 32."""
    drop_path = stochastic_depth(drop_path_rate, depths)
    x = Conv2D(widths[0], 4, 4, kernel_initializer=NORMAL_02, name="stem_conv")(x)
    x = layer_norm(name="stem_norm")(x)
    for stage, width in enumerate(widths):
        if stage:
            x = layer_norm(name=f"stage{stage}_downsample_norm")(x)
            x = Conv2D(
                width, 2, 2, kernel_initializer=NORMAL_02, name=f"stage{stage}_downsample_conv"
            )(x)
        for i, rate in enumerate(drop_path[stage]):
            x = ConvNeXtBlock(width, version, mlp, rate, name=f"stage{stage}_block{i}")(x)
        yield x


ConvNeXtAtto = application("convnext_atto")
ConvNeXtFemto = application("convnext_femto")
ConvNeXtPico = application("convnext_pico")
ConvNeXtNano = application("convnext_nano")
ConvNeXtTiny = application("convnext_tiny")
ConvNeXtSmall = application("convnext_small")
ConvNeXtBase = application("convnext_base")
ConvNeXtLarge = application("convnext_large")
ConvNeXtXLarge = application("convnext_xlarge")
ConvNeXtV2Atto = application("convnextv2_atto")
ConvNeXtV2Femto = application("convnextv2_femto")
ConvNeXtV2Pico = application("convnextv2_pico")
ConvNeXtV2Nano = application("convnextv2_nano")
ConvNeXtV2Tiny = application("convnextv2_tiny")
ConvNeXtV2Small = application("convnextv2_small")
ConvNeXtV2Base = application("convnextv2_base")
ConvNeXtV2Large = application("convnextv2_large")
ConvNeXtV2Huge = application("convnextv2_huge")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
