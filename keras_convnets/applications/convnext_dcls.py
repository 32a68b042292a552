"""ConvNeXt-dcls: ConvNeXt with large depthwise kernels of few weights whose places are learned.

Paper: https://arxiv.org/abs/2112.03740, section 5. Differs from the reference: nothing; its
`clamp_parameters`, to be called after each training step, is a constraint of the positions here.
All blocks of a stage share one set of positions, which checkpoints hold under each block's name.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import Block, DCLSConv2D, DropPath, LayerScale, stochastic_depth
from keras_convnets.layers.fast import Activation, Conv2D, Dense, LayerNormalization
from keras_convnets.layers.initializers import NORMAL_02
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "convnext_dcls_tiny": dict(depths=(3, 3, 9, 3), widths=(96, 192, 384, 768), count=34),
    "convnext_dcls_small": dict(depths=(3, 3, 27, 3), widths=(96, 192, 384, 768), count=40),
    "convnext_dcls_base": dict(depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024), count=40),
    "convnext_dcls_test": dict(depths=(1, 1, 2, 1), widths=(8, 12, 16, 24), count=6, kernel_size=9),
}
ZENODO = "https://zenodo.org/record/7112021/files"
WEIGHTS = {
    "convnext_dcls_tiny.ema_in1k": Checkpoint(
        "mit", source=f"{ZENODO}/convnext_dcls_tiny_1k_224_ema.pth", top1=82.5
    ),
    "convnext_dcls_small.ema_in1k": Checkpoint(
        "mit", source=f"{ZENODO}/convnext_dcls_small_1k_224_ema.pth", top1=83.7
    ),
    "convnext_dcls_base.ema_in1k": Checkpoint(
        "mit", source=f"{ZENODO}/convnext_dcls_base_1k_224_ema.pth", top1=84.1
    ),
}
KEYS = [
    (r"^stem_conv", "downsample_layers.0.0"),
    (r"^stem_norm", "downsample_layers.0.1"),
    (r"^downsample(\d)_norm", r"downsample_layers.\1.0"),
    (r"^downsample(\d)_conv", r"downsample_layers.\1.1"),
    (r"^stage(\d)/blocks(\d+)", r"stages.\1.\2"),
    (r"/depthwise", "/dwconv"),
    (r"/fc(\d)", r"/pwconv\1"),
    (r"/scale", ""),
    (r"^head_norm", "norm"),
]


def layer_norm(**kwargs):
    return LayerNormalization(epsilon=1e-6, **kwargs)


@keras.saving.register_keras_serializable("keras_convnets")
class ConvNeXtDCLSBlock(Block):
    """x + scale(fc2(gelu(fc1(norm(depthwise(x)))))), the kernel of `count` weights that move.

    Input and output: (batch, height, width, width_of_stage).
    """

    def __init__(self, width: int, kernel_size: int, count: int, drop_path: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.depthwise = DCLSConv2D(
            width, kernel_size, count, groups=width, weight_initializer=NORMAL_02
        )
        self.norm = layer_norm()
        self.fc1 = Dense(4 * width, kernel_initializer=NORMAL_02)
        self.activation = Activation("gelu")
        self.fc2 = Dense(width, kernel_initializer=NORMAL_02)
        self.scale = LayerScale(1e-6)
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        y = self.fc1(self.norm(self.depthwise(x)))
        y = self.scale(self.fc2(self.activation(y)))
        return x + self.drop_path(y)


@keras.saving.register_keras_serializable("keras_convnets")
class ConvNeXtDCLSStage(Block):
    """Blocks whose kernels have their weights at the same, learned positions, one after another.

    Input and output: (batch, height, width, width). `drop_path`: a rate for each block.
    """

    def __init__(self, width: int, kernel_size: int, count: int, drop_path: list[float], **kwargs):
        super().__init__(**kwargs)
        self.blocks = [ConvNeXtDCLSBlock(width, kernel_size, count, rate) for rate in drop_path]
        for block in self.blocks[1:]:
            block.depthwise.share_positions(self.blocks[0].depthwise)

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def pre_logits(x):
    return layer_norm(name="head_norm")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_logits=pre_logits, head_initializer=NORMAL_02)
def convnext_dcls(x, depths, widths, count, kernel_size=17, drop_path_rate=0.0):
    """Yields the output of each stage: strides 4, 8, 16, 32."""
    drop_path = stochastic_depth(drop_path_rate, depths)
    for stage, width in enumerate(widths):
        if stage:
            x = layer_norm(name=f"downsample{stage}_norm")(x)
            x = Conv2D(width, 2, 2, kernel_initializer=NORMAL_02, name=f"downsample{stage}_conv")(x)
        else:
            x = Conv2D(width, 4, 4, kernel_initializer=NORMAL_02, name="stem_conv")(x)
            x = layer_norm(name="stem_norm")(x)
        x = ConvNeXtDCLSStage(width, kernel_size, count, drop_path[stage], name=f"stage{stage}")(x)
        yield x


ConvNeXtDCLSTiny = application("convnext_dcls_tiny")
ConvNeXtDCLSSmall = application("convnext_dcls_small")
ConvNeXtDCLSBase = application("convnext_dcls_base")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
