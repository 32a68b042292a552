"""EfficientNetV2 and the networks for the Edge TPU: early blocks with one dense convolution.

Paper: https://arxiv.org/abs/2104.00298, table 4. ES, EM and EL are EfficientNets fused in the same
way for the Edge TPU. The rw_ variants are timm's own sizes; the tf_ ones pad as TensorFlow does.
"""

from __future__ import annotations

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.efficientnet import APACHE, HALF, KEYS, TENSORFLOW, efficientnet
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM
from keras_convnets.registry import Checkpoint, family

# Block, repeats, kernel, stride, expansion, output channels and squeeze-and-excitation (table 4).
V2_B = dict(
    rows=(
        ("conv", 1, 3, 1, 1, 16, False),
        ("fused", 2, 3, 2, 4, 32, False),
        ("fused", 2, 3, 2, 4, 48, False),
        ("inverted", 3, 3, 2, 4, 96, True),
        ("inverted", 5, 3, 1, 6, 112, True),
        ("inverted", 8, 3, 2, 6, 192, True),
    ),
    keep=0.0,
)
V2_S = (
    ("conv", 2, 3, 1, 1, 24, False),
    ("fused", 4, 3, 2, 4, 48, False),
    ("fused", 4, 3, 2, 4, 64, False),
    ("inverted", 6, 3, 2, 4, 128, True),
    ("inverted", 9, 3, 1, 6, 160, True),
    ("inverted", 15, 3, 2, 6, 256, True),
)
V2_M = (
    ("conv", 3, 3, 1, 1, 24, False),
    ("fused", 5, 3, 2, 4, 48, False),
    ("fused", 5, 3, 2, 4, 80, False),
    ("inverted", 7, 3, 2, 4, 160, True),
    ("inverted", 14, 3, 1, 6, 176, True),
    ("inverted", 18, 3, 2, 6, 304, True),
    ("inverted", 5, 3, 1, 6, 512, True),
)
V2_L = (
    ("conv", 4, 3, 1, 1, 32, False),
    ("fused", 7, 3, 2, 4, 64, False),
    ("fused", 7, 3, 2, 4, 96, False),
    ("inverted", 10, 3, 2, 4, 192, True),
    ("inverted", 19, 3, 1, 6, 224, True),
    ("inverted", 25, 3, 2, 6, 384, True),
    ("inverted", 7, 3, 1, 6, 640, True),
)
V2_XL = (
    ("conv", 4, 3, 1, 1, 32, False),
    ("fused", 8, 3, 2, 4, 64, False),
    ("fused", 8, 3, 2, 4, 96, False),
    ("inverted", 16, 3, 2, 4, 192, True),
    ("inverted", 24, 3, 1, 6, 256, True),
    ("inverted", 32, 3, 2, 6, 512, True),
    ("inverted", 8, 3, 1, 6, 640, True),
)
EDGE = dict(
    rows=(
        ("edge", 1, 3, 1, 4, 24, False),
        ("fused", 2, 3, 2, 8, 32, False),
        ("fused", 4, 3, 2, 8, 48, False),
        ("inverted", 5, 5, 2, 8, 96, False),
        ("inverted", 4, 5, 1, 8, 144, False),
        ("inverted", 2, 5, 2, 8, 192, False),
    ),
    activation="relu",
)


def rw(repeats):
    """An earlier reading of V2-S: the first stage is fused, the last is wider."""
    first, *middle, last = V2_S
    rows = (("fused", *first[1:]), *middle, (*last[:5], 272, True))
    return tuple((block, n, *rest) for (block, _, *rest), n in zip(rows, repeats))


VARIANTS = {
    "efficientnet_es": dict(**EDGE),
    "efficientnet_em": dict(**EDGE, depth=1.1),
    "efficientnet_el": dict(**EDGE, alpha=1.2, depth=1.4),
    "efficientnetv2_rw_t": dict(rows=V2_S, stem=24, alpha=0.8, depth=0.9),
    "efficientnetv2_rw_s": dict(rows=rw((2, 4, 4, 6, 9, 15)), stem=24, head_width=1792),
    "efficientnetv2_rw_m": dict(rows=rw((3, 5, 5, 8, 15, 24)), stem=24, head_width=1792, alpha=1.2),
    "tf_efficientnet_es": dict(**EDGE, **TENSORFLOW),
    "tf_efficientnet_em": dict(**EDGE, depth=1.1, **TENSORFLOW),
    "tf_efficientnet_el": dict(**EDGE, alpha=1.2, depth=1.4, **TENSORFLOW),
    "tf_efficientnetv2_b0": dict(**V2_B, **TENSORFLOW),
    "tf_efficientnetv2_b1": dict(**V2_B, depth=1.1, **TENSORFLOW),
    "tf_efficientnetv2_b2": dict(**V2_B, alpha=1.1, depth=1.2, **TENSORFLOW),
    "tf_efficientnetv2_b3": dict(**V2_B, alpha=1.2, depth=1.4, **TENSORFLOW),
    "tf_efficientnetv2_s": dict(rows=V2_S, stem=24, **TENSORFLOW),
    "tf_efficientnetv2_m": dict(rows=V2_M, stem=24, **TENSORFLOW),
    "tf_efficientnetv2_l": dict(rows=V2_L, **TENSORFLOW),
    "tf_efficientnetv2_xl": dict(rows=V2_XL, **TENSORFLOW),
    "tf_efficientnetv2_test": dict(
        rows=(
            ("conv", 2, 3, 1, 1, 16, False),
            ("inverted", 1, 3, 2, 3, 24, True),
            ("fused", 2, 3, 2, 2, 32, False),
        ),
        stem=16,
        head_width=40,
        **TENSORFLOW,
    ),
}
SQUASH_384 = dict(input_size=384, crop=1.0, crop_mode="squash")
WEIGHTS = {
    "efficientnet_es.ra_in1k": Checkpoint(APACHE, top1=78.1),
    "efficientnet_em.ra2_in1k": Checkpoint(APACHE, input_size=240, crop=0.882, top1=79.256),
    "efficientnet_el.ra_in1k": Checkpoint(APACHE, input_size=300, crop=0.904, top1=81.308),
    "efficientnetv2_rw_t.ra2_in1k": Checkpoint(APACHE, crop=1.0, top1=81.37),
    "efficientnetv2_rw_s.ra2_in1k": Checkpoint(APACHE, input_size=288, crop=1.0, top1=82.888),
    "efficientnetv2_rw_m.agc_in1k": Checkpoint(APACHE, input_size=320, crop=1.0, top1=84.296),
    "tf_efficientnet_es.in1k": Checkpoint(APACHE, **HALF, top1=76.608),
    "tf_efficientnet_em.in1k": Checkpoint(APACHE, input_size=240, crop=0.882, **HALF, top1=78.128),
    "tf_efficientnet_el.in1k": Checkpoint(APACHE, input_size=300, crop=0.904, **HALF, top1=80.246),
    "tf_efficientnetv2_b0.in1k": Checkpoint(APACHE, input_size=192, top1=76.876),
    "tf_efficientnetv2_b1.in1k": Checkpoint(APACHE, input_size=192, crop=0.882, top1=77.934),
    "tf_efficientnetv2_b2.in1k": Checkpoint(APACHE, input_size=208, crop=0.89, top1=79.208),
    "tf_efficientnetv2_b3.in21k_ft_in1k": Checkpoint(
        APACHE, input_size=240, crop=0.9, crop_mode="squash", **HALF, top1=81.078
    ),
    "tf_efficientnetv2_b3.in1k": Checkpoint(APACHE, input_size=240, crop=0.904, top1=80.708),
    "tf_efficientnetv2_b3.in21k": Checkpoint(
        APACHE, input_size=240, crop=0.904, **HALF, labels=None
    ),
    "tf_efficientnetv2_s.in21k_ft_in1k": Checkpoint(
        APACHE, input_size=300, crop=1.0, **HALF, top1=83.348
    ),
    "tf_efficientnetv2_s.in1k": Checkpoint(APACHE, input_size=300, crop=1.0, **HALF, top1=83.162),
    "tf_efficientnetv2_s.in21k": Checkpoint(APACHE, input_size=300, crop=1.0, **HALF, labels=None),
    "tf_efficientnetv2_m.in21k_ft_in1k": Checkpoint(APACHE, **SQUASH_384, **HALF, top1=84.768),
    "tf_efficientnetv2_m.in1k": Checkpoint(APACHE, **SQUASH_384, **HALF, top1=84.554),
    "tf_efficientnetv2_m.in21k": Checkpoint(APACHE, **SQUASH_384, **HALF, labels=None),
    "tf_efficientnetv2_l.in21k_ft_in1k": Checkpoint(APACHE, **SQUASH_384, **HALF, top1=85.846),
    "tf_efficientnetv2_l.in1k": Checkpoint(APACHE, **SQUASH_384, **HALF, top1=85.202),
    "tf_efficientnetv2_l.in21k": Checkpoint(APACHE, **SQUASH_384, **HALF, labels=None),
    "tf_efficientnetv2_xl.in21k_ft_in1k": Checkpoint(APACHE, **SQUASH_384, **HALF, top1=85.562),
    "tf_efficientnetv2_xl.in21k": Checkpoint(APACHE, **SQUASH_384, **HALF, labels=None),
}


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=FAN_OUT_UNIFORM)
def efficientnet_v2(x, rows, drop_path_rate=0.0, **scaling):
    """Yields strides 2, 4, 8, 16, 32; `scaling` and the rest as in `efficientnet`."""
    return (yield from efficientnet(x, rows, drop_path_rate=drop_path_rate, **scaling))


EfficientNetES = application("efficientnet_es")
EfficientNetEM = application("efficientnet_em")
EfficientNetEL = application("efficientnet_el")
EfficientNetV2RWT = application("efficientnetv2_rw_t")
EfficientNetV2RWS = application("efficientnetv2_rw_s")
EfficientNetV2RWM = application("efficientnetv2_rw_m")
TFEfficientNetES = application("tf_efficientnet_es")
TFEfficientNetEM = application("tf_efficientnet_em")
TFEfficientNetEL = application("tf_efficientnet_el")
TFEfficientNetV2B0 = application("tf_efficientnetv2_b0")
TFEfficientNetV2B1 = application("tf_efficientnetv2_b1")
TFEfficientNetV2B2 = application("tf_efficientnetv2_b2")
TFEfficientNetV2B3 = application("tf_efficientnetv2_b3")
TFEfficientNetV2S = application("tf_efficientnetv2_s")
TFEfficientNetV2M = application("tf_efficientnetv2_m")
TFEfficientNetV2L = application("tf_efficientnetv2_l")
TFEfficientNetV2XL = application("tf_efficientnetv2_xl")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
