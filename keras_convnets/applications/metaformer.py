"""ConvFormer and CAFormer: MetaFormers whose tokens mix by separable convolution and attention.

Paper: https://arxiv.org/abs/2210.13452 (MetaFormer Baselines). A MetaFormer is a transformer whose
token mixer is left open; what follows the mixer, and how maps shrink, is the same for all. The
CAFormers mix by convolution in the first two stages, and by attention in the last two. Differs from
the reference: nothing. Those whose mixers learn nothing are in `poolformer.py`.
"""

from __future__ import annotations

from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import LayerScale, MetaFormerBlock, stochastic_depth
from keras_convnets.layers.fast import Conv2D, Dense, LayerNormalization, ZeroPadding2D
from keras_convnets.layers.initializers import NORMAL_02
from keras_convnets.registry import Checkpoint, family

SIZES = {
    "s18": dict(depths=(3, 3, 9, 3), widths=(64, 128, 320, 512)),
    "s36": dict(depths=(3, 12, 18, 3), widths=(64, 128, 320, 512)),
    "m36": dict(depths=(3, 12, 18, 3), widths=(96, 192, 384, 576)),
    "b36": dict(depths=(3, 12, 18, 3), widths=(128, 256, 512, 768)),
}
CONV = ("separable",) * 4
CONV_ATTENTION = ("separable", "separable", "attention", "attention")
VARIANTS = {
    **{f"convformer_{size}": SIZES[size] | {"mixers": CONV} for size in SIZES},
    **{f"caformer_{size}": SIZES[size] | {"mixers": CONV_ATTENTION} for size in SIZES},
    "caformer_test": dict(
        depths=(1, 1, 1, 1),
        widths=(8, 16, 64, 24),
        mixers=("separable", "separable", "attention", "separable"),
    ),
}
FULL = dict(license="apache-2.0", crop=1.0)
LARGE = FULL | dict(input_size=384)
WEIGHTS = {
    "convformer_s18.sail_in1k": Checkpoint(**FULL, top1=83.0),
    "convformer_s18.sail_in1k_384": Checkpoint(**LARGE, top1=84.4),
    "convformer_s18.sail_in22k_ft_in1k": Checkpoint(**FULL, top1=83.7),
    "convformer_s18.sail_in22k_ft_in1k_384": Checkpoint(**LARGE, top1=85.0),
    "convformer_s18.sail_in22k": Checkpoint(**FULL, labels="imagenet-22k"),
    "convformer_s36.sail_in1k": Checkpoint(**FULL, top1=84.1),
    "convformer_s36.sail_in1k_384": Checkpoint(**LARGE, top1=85.4),
    "convformer_s36.sail_in22k_ft_in1k": Checkpoint(**FULL, top1=85.4),
    "convformer_s36.sail_in22k_ft_in1k_384": Checkpoint(**LARGE, top1=86.4),
    "convformer_s36.sail_in22k": Checkpoint(**FULL, labels="imagenet-22k"),
    "convformer_m36.sail_in1k": Checkpoint(**FULL, top1=84.5),
    "convformer_m36.sail_in1k_384": Checkpoint(**LARGE, top1=85.6),
    "convformer_m36.sail_in22k_ft_in1k": Checkpoint(**FULL, top1=86.1),
    "convformer_m36.sail_in22k_ft_in1k_384": Checkpoint(**LARGE, top1=86.9),
    "convformer_m36.sail_in22k": Checkpoint(**FULL, labels="imagenet-22k"),
    "convformer_b36.sail_in1k": Checkpoint(**FULL, top1=84.8),
    "convformer_b36.sail_in1k_384": Checkpoint(**LARGE, top1=85.7),
    "convformer_b36.sail_in22k_ft_in1k": Checkpoint(**FULL, top1=87.0),
    "convformer_b36.sail_in22k_ft_in1k_384": Checkpoint(**LARGE, top1=87.6),
    "convformer_b36.sail_in22k": Checkpoint(**FULL, labels="imagenet-22k"),
    "caformer_s18.sail_in1k": Checkpoint(**FULL, top1=83.6),
    "caformer_s18.sail_in1k_384": Checkpoint(**LARGE, top1=85.0),
    "caformer_s18.sail_in22k_ft_in1k": Checkpoint(**FULL, top1=84.1),
    "caformer_s18.sail_in22k_ft_in1k_384": Checkpoint(**LARGE, top1=85.4),
    "caformer_s18.sail_in22k": Checkpoint(**FULL, labels="imagenet-22k"),
    "caformer_s36.sail_in1k": Checkpoint(**FULL, top1=84.5),
    "caformer_s36.sail_in1k_384": Checkpoint(**LARGE, top1=85.7),
    "caformer_s36.sail_in22k_ft_in1k": Checkpoint(**FULL, top1=85.8),
    "caformer_s36.sail_in22k_ft_in1k_384": Checkpoint(**LARGE, top1=86.9),
    "caformer_s36.sail_in22k": Checkpoint(**FULL, labels="imagenet-22k"),
    "caformer_m36.sail_in1k": Checkpoint(**FULL, top1=85.2),
    "caformer_m36.sail_in1k_384": Checkpoint(**LARGE, top1=86.2),
    "caformer_m36.sail_in22k_ft_in1k": Checkpoint(**FULL, top1=86.6),
    "caformer_m36.sail_in22k_ft_in1k_384": Checkpoint(**LARGE, top1=87.5),
    "caformer_m36.sail_in22k": Checkpoint(**FULL, labels="imagenet-22k"),
    "caformer_b36.sail_in1k": Checkpoint(**FULL, top1=85.5),
    "caformer_b36.sail_in1k_384": Checkpoint(**LARGE, top1=86.4),
    "caformer_b36.sail_in22k_ft_in1k": Checkpoint(**FULL, top1=87.4),
    "caformer_b36.sail_in22k_ft_in1k_384": Checkpoint(**LARGE, top1=88.1),
    "caformer_b36.sail_in22k": Checkpoint(**FULL, labels="imagenet-22k"),
}
KEYS = [
    (r"^(stem)_(conv|norm)", r"\1/\2"),
    (r"^(stage\d)_downsample_(conv|norm)", r"\1/downsample/\2"),
    (r"^(stage\d_block\d+)/(fc1|act|fc2)", r"\1/mlp/\2"),
    (r"^stage(\d)_block(\d+)/", r"stages.\1.blocks.\2/"),
    (r"^stage(\d)/", r"stages.\1/"),
    (r"/mixer", "/token_mixer"),
    (r"^head_norm", "head.norm"),
    (r"^head_fc1", "head.fc.fc1"),
    (r"^head_hidden_norm", "head.fc.norm"),
    (r"^head$", "head.fc.fc2"),
]
LAYOUTS = {LayerScale: {"gamma": ("scale", (0,))}}


def pre_logits(x):
    return LayerNormalization(epsilon=1e-6, name="head_norm")(x)


def classifier(x, classes):
    """dense(norm(relu(dense(x))^2)), four times as wide inside."""
    x = Dense(4 * x.shape[-1], kernel_initializer=NORMAL_02, name="head_fc1")(x)
    x = ops.square(ops.relu(x))
    x = LayerNormalization(epsilon=1e-6, name="head_hidden_norm")(x)
    return Dense(classes, kernel_initializer=NORMAL_02, name="head")(x)


def shrink(x, width, kernel_size, strides, padding, name):
    """The convolution before a stage."""
    x = ZeroPadding2D(padding, name=f"{name}_pad")(x)
    return Conv2D(width, kernel_size, strides, kernel_initializer=NORMAL_02, name=f"{name}_conv")(x)


def unbiased_norm(x, name):
    return LayerNormalization(epsilon=1e-6, center=False, name=name)(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_logits=pre_logits, classifier=classifier, layouts=LAYOUTS)
def metaformer(x, depths, widths, mixers, norm="channels", mlp=None, drop_path_rate=0.0):
    """Yields the output of each stage: strides 4, 8, 16, 32.

    `mixers`, `norm`, `mlp`: as in `MetaFormerBlock`; without `mlp`, `"dense"` beside attention.
    """
    drop_path = stochastic_depth(drop_path_rate, depths)
    x = unbiased_norm(shrink(x, widths[0], 7, 4, 2, "stem"), "stem_norm")
    for stage, (width, mixer) in enumerate(zip(widths, mixers)):
        if stage:
            name = f"stage{stage}_downsample"
            x = shrink(unbiased_norm(x, f"{name}_norm"), width, 3, 2, 1, name)
        form = mlp or ("dense" if mixer == "attention" else "conv")
        for i, rate in enumerate(drop_path[stage]):
            x = MetaFormerBlock(
                width, mixer, norm, stage >= 2, form, rate, name=f"stage{stage}_block{i}"
            )(x)
        yield x


ConvFormerS18 = application("convformer_s18")
ConvFormerS36 = application("convformer_s36")
ConvFormerM36 = application("convformer_m36")
ConvFormerB36 = application("convformer_b36")
CAFormerS18 = application("caformer_s18")
CAFormerS36 = application("caformer_s36")
CAFormerM36 = application("caformer_m36")
CAFormerB36 = application("caformer_b36")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
