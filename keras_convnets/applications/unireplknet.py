"""UniRepLKNet: few large kernels see wide, small ones deepen; for images and much else.

Papers: https://arxiv.org/abs/2311.15599, https://arxiv.org/abs/2410.08049. Differs from the
reference: nothing. Published parameters and multiply-accumulates are those of the merged form,
`fold_batchnorm(reparameterize(model))`. `keras_convnets.modality` makes images of sounds, videos,
time series and point clouds.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    DepthwiseConv2D,
    DilatedRepConv,
    DropPath,
    GlobalResponseNorm,
    LayerScale,
    SqueezeExcite,
    batch_norm,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation, Conv2D, Dense, LayerNormalization, ZeroPadding2D
from keras_convnets.layers.initializers import NORMAL_02
from keras_convnets.layers.rep import fold_norm, values
from keras_convnets.registry import Checkpoint, family

# Kernel size of each block, by stage.
LIGHT = ((3,) * 2, (13,) * 2, (13,) * 6, (13,) * 2)
NANO = ((3,) * 2, (13,) * 2, (13,) * 8, (13,) * 2)
TINY = ((3,) * 3, (13,) * 3, (13, 3) * 9, (13,) * 3)
DEEP = ((3,) * 3, (13,) * 3, (13, 3, 3) * 9, (13,) * 3)
VARIANTS = {
    "unireplknet_a": dict(width=40, kernel_sizes=LIGHT),
    "unireplknet_f": dict(width=48, kernel_sizes=LIGHT),
    "unireplknet_p": dict(width=64, kernel_sizes=LIGHT),
    "unireplknet_n": dict(width=80, kernel_sizes=NANO),
    "unireplknet_t": dict(width=80, kernel_sizes=TINY),
    "unireplknet_s": dict(width=96, kernel_sizes=DEEP),
    "unireplknet_b": dict(width=128, kernel_sizes=DEEP),
    "unireplknet_l": dict(width=192, kernel_sizes=DEEP),
    "unireplknet_xl": dict(width=256, kernel_sizes=DEEP),
    "unireplknet_test": dict(
        width=(8, 12, 16, 24), kernel_sizes=((3, 5), (7, 9), (13, 3, 11), (13,))
    ),
}
SQUASH_384 = dict(input_size=384, crop=1.0, crop_mode="squash")


def checkpoint(file, **arguments):
    source = f"hf://DingXiaoH/UniRepLKNet/unireplknet_{file}.pth"
    return Checkpoint("apache-2.0", source, **arguments)


WEIGHTS = {
    "unireplknet_a.in1k": checkpoint("a_in1k_224_acc77.03", top1=77.03),
    "unireplknet_f.in1k": checkpoint("f_in1k_224_acc78.58", top1=78.58),
    "unireplknet_p.in1k": checkpoint("p_in1k_224_acc80.23", top1=80.23),
    "unireplknet_n.in1k": checkpoint("n_in1k_224_acc81.64", top1=81.64),
    "unireplknet_t.in1k": checkpoint("t_in1k_224_acc83.21", top1=83.21),
    "unireplknet_s.in1k": checkpoint("s_in1k_224_acc83.91", top1=83.91),
    "unireplknet_s.in22k_ft_in1k_384": checkpoint(
        "s_in22k_to_in1k_384_acc86.44", **SQUASH_384, top1=86.44
    ),
    "unireplknet_s.in22k": checkpoint("s_in22k_pretrain", labels="imagenet-22k"),
    "unireplknet_b.in22k_ft_in1k_384": checkpoint(
        "b_in22k_to_in1k_384_acc87.40", **SQUASH_384, top1=87.40
    ),
    "unireplknet_b.in22k": checkpoint("b_in22k_pretrain", labels="imagenet-22k"),
    "unireplknet_l.in22k_ft_in1k_384": checkpoint(
        "l_in22k_to_in1k_384_acc87.88", **SQUASH_384, top1=87.88
    ),
    "unireplknet_l.in22k": checkpoint("l_in22k_pretrain", input_size=192, labels="imagenet-22k"),
    "unireplknet_xl.in22k_ft_in1k_384": checkpoint(
        "xl_in22k_to_in1k_384_acc87.96", **SQUASH_384, top1=87.96
    ),
    "unireplknet_xl.in22k": checkpoint("xl_in22k_pretrain", input_size=192, labels="imagenet-22k"),
}
KEYS = [
    (r"^stem_conv1", "downsample_layers.0.0"),
    (r"^stem_norm1", "downsample_layers.0.1"),
    (r"^stem_conv2", "downsample_layers.0.3"),
    (r"^stem_norm2", "downsample_layers.0.4"),
    (r"^stage(\d)_conv", r"downsample_layers.\1.0"),
    (r"^stage(\d)_norm", r"downsample_layers.\1.1"),
    (r"^stage(\d)_block(\d+)", r"stages.\1.\2"),
    (r"depthwise/conv$", "dwconv.lk_origin"),
    (r"depthwise/norm$", "dwconv.origin_bn"),
    (r"depthwise/conv_k(\d+)_d(\d+)", r"dwconv.dil_conv_k\1_\2"),
    (r"depthwise/norm_k(\d+)_d(\d+)", r"dwconv.dil_bn_k\1_\2"),
    (r"/depthwise$", "/dwconv"),
    (r"squeeze/reduce", "se.down"),
    (r"squeeze/expand", "se.up"),
    (r"expand$", "pwconv1.1"),
    (r"project/grn", "act.1"),
    (r"project/linear", "pwconv2.0"),
    (r"project/norm", "pwconv2.2"),
    (r"/project/scale", ""),
    (r"^head_norm", "norm"),
]
PER_CHANNEL = ((), (), (), 0)
LAYOUTS = {
    GlobalResponseNorm: {"gamma": ("gamma", PER_CHANNEL), "beta": ("beta", PER_CHANNEL)},
}
# Kernel sizes and dilations of the branches beside a large kernel, section 3.1 and its code.
BRANCHES = {
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


def layer_norm(name):
    return LayerNormalization(epsilon=1e-6, name=name)


@keras.saving.register_keras_serializable("keras_convnets")
class ResponseLinear(Block):
    """linear(grn(x)), of a global response normalisation that adds nothing.

    Input: (..., channels). Output: (..., width).
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.grn = GlobalResponseNorm(use_bias=False)
        self.linear = Dense(width)

    def call(self, x):
        return self.linear(self.grn(x))


@keras.saving.register_keras_serializable("keras_convnets")
class ResponseProjection(Block):
    """scale(norm(linear(grn(x)))): from the hidden to the residual features.

    Input: (batch, height, width, channels). Output: (batch, height, width, width_of_stage).
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.grn = GlobalResponseNorm()
        self.linear = Dense(width, use_bias=False, kernel_initializer=NORMAL_02)
        self.norm = batch_norm()
        self.scale = LayerScale(1e-6)

    def call(self, x):
        return self.scale(self.norm(self.linear(self.grn(x))))

    def fused(self) -> ResponseLinear:
        """The same at inference with one linear map, whose bias has that of the response too."""
        kernel, bias = fold_norm(self.linear, self.norm)
        bias = bias + values(self.grn.beta) @ kernel
        scale = values(self.scale.gamma)
        layer = ResponseLinear(kernel.shape[1], dtype=self.dtype_policy)
        layer.build((None, None, None, kernel.shape[0]))
        layer.grn.gamma.assign(self.grn.gamma)
        layer.linear.kernel.assign(kernel * scale)
        layer.linear.bias.assign(bias * scale)
        return layer


@keras.saving.register_keras_serializable("keras_convnets")
class UniRepLKNetBlock(Block):
    """x + project(gelu(expand(squeeze(norm(depthwise(x)))))), figure 1 of the first paper.

    Input and output: (batch, height, width, width). A `kernel_size` of 7 or more has dilated
    branches beside it, see `BRANCHES`.

    Raises:
        ValueError: for kernel sizes without branches that are not 3 or 5.
    """

    def __init__(self, width: int, kernel_size: int, drop_path: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        if kernel_size not in (3, 5, *BRANCHES):
            raise ValueError(f"kernel_size={kernel_size} must be one of {[3, 5, *BRANCHES]}.")
        if kernel_size in BRANCHES:
            self.depthwise = DilatedRepConv(kernel_size, BRANCHES[kernel_size], NORMAL_02)
        else:
            self.depthwise = DepthwiseConv2D(
                kernel_size,
                padding=kernel_size // 2,
                use_bias=False,
                depthwise_initializer=NORMAL_02,
            )
        self.norm = batch_norm()
        self.squeeze = SqueezeExcite(width, width // 4, kernel_initializer=NORMAL_02)
        self.expand = Dense(4 * width, kernel_initializer=NORMAL_02)
        self.activation = Activation("gelu")
        self.project = ResponseProjection(width)
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        y = self.squeeze(self.norm(self.depthwise(x)))
        return x + self.drop_path(self.project(self.activation(self.expand(y))))


def halve(x, width, conv, norm):
    """A 3x3 convolution with stride 2, and layer normalisation."""
    x = ZeroPadding2D(1)(x)
    x = Conv2D(width, 3, 2, kernel_initializer=NORMAL_02, name=conv)(x)
    return layer_norm(norm)(x)


def pre_logits(x):
    return layer_norm("head_norm")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_logits=pre_logits, head_initializer=NORMAL_02, layouts=LAYOUTS)
def unireplknet(x, width, kernel_sizes, drop_path_rate=0.0):
    """Yields the output of each stage: strides 4, 8, 16, 32.

    `width`: of the first stage, each other has twice that of the one before; or of each.
    """
    widths = [width << stage for stage in range(4)] if isinstance(width, int) else width
    drop_path = stochastic_depth(drop_path_rate, [len(sizes) for sizes in kernel_sizes])
    x = halve(x, widths[0] // 2, "stem_conv1", "stem_norm1")
    x = Activation("gelu", name="stem_activation")(x)
    x = halve(x, widths[0], "stem_conv2", "stem_norm2")
    for stage, (width, sizes, rates) in enumerate(zip(widths, kernel_sizes, drop_path)):
        if stage:
            x = halve(x, width, f"stage{stage}_conv", f"stage{stage}_norm")
        for i, (kernel_size, rate) in enumerate(zip(sizes, rates)):
            x = UniRepLKNetBlock(width, kernel_size, rate, name=f"stage{stage}_block{i}")(x)
        yield x


UniRepLKNetA = application("unireplknet_a")
UniRepLKNetF = application("unireplknet_f")
UniRepLKNetP = application("unireplknet_p")
UniRepLKNetN = application("unireplknet_n")
UniRepLKNetT = application("unireplknet_t")
UniRepLKNetS = application("unireplknet_s")
UniRepLKNetB = application("unireplknet_b")
UniRepLKNetL = application("unireplknet_l")
UniRepLKNetXL = application("unireplknet_xl")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
