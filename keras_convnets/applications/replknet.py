"""RepLKNet: a few very large depthwise kernels, up to 31x31, instead of many small ones.

Paper: https://arxiv.org/abs/2203.06717. Differs from the reference: nothing. Published parameters
and multiply-accumulates are those of the merged form, `reparameterize(model)`.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    ConvNormAct,
    DepthwiseNormAct,
    DilatedRepConv,
    DropPath,
    batch_norm,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation
from keras_convnets.layers.initializers import DEPTHWISE_TORCH_UNIFORM, TORCH_UNIFORM
from keras_convnets.registry import Checkpoint, family

WIDE = dict(kernel_sizes=(31, 29, 27, 13), small_kernel=5, depths=(2, 2, 18, 2))
VARIANTS = {
    "replknet_31b": dict(widths=(128, 256, 512, 1024), **WIDE),
    "replknet_31l": dict(widths=(192, 384, 768, 1536), **WIDE),
    "replknet_xl": dict(
        widths=(256, 512, 1024, 2048),
        kernel_sizes=(27, 27, 27, 13),
        depths=(2, 2, 18, 2),
        expansion=1.5,
    ),
    "replknet_test": dict(
        widths=(4, 8, 8, 8), kernel_sizes=(31, 29, 27, 13), small_kernel=5, depths=(1, 2, 1, 1)
    ),
    "replknet_xl_test": dict(
        widths=(8, 8, 16, 16), kernel_sizes=(27, 27, 27, 13), depths=(1, 2, 1, 1), expansion=1.5
    ),
}


DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t"


def checkpoint(file_id, **arguments):
    return Checkpoint("mit", f"{DRIVE}&id={file_id}#replknet.pth", **arguments)


HALVES = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
WHOLE_384 = dict(input_size=384, crop=1.0)
WEIGHTS = {
    "replknet_31b.in1k": checkpoint("1azQUiCxK9feYVkkrPqwVPBtNsTzDrX7S", top1=83.5),
    "replknet_31b.in1k_384": checkpoint(
        "1vo-P3XB6mRLUeDzmgv90dOu73uCeLfZN", **WHOLE_384, top1=84.8
    ),
    "replknet_31b.in22k": checkpoint("1PYJiMszZYNrkZOeYwjccvxX8UHMALB7z", labels="imagenet-22k"),
    "replknet_31b.in22k_ft_in1k": checkpoint("1DslZ2voXZQR1QoFY9KnbsHAeF84hzS0s", top1=85.2),
    "replknet_31b.in22k_ft_in1k_384": checkpoint(
        "1Sc46BWdXXm2fVP-K_hKKU_W8vAB-0duX", **WHOLE_384, top1=86.0
    ),
    "replknet_31l.in22k_ft_in1k_384": checkpoint(
        "1JYXoNHuRvC33QV1pmpzMTKEni1hpWfBl", **WHOLE_384, top1=86.6
    ),
    "replknet_31l.in22k": checkpoint("16jcPsPwo5rko7ojWS9k_W-svHX-iFknY", labels="imagenet-22k"),
    "replknet_xl.megdata73m_ft_in1k_320": checkpoint(
        "1tPC60El34GntXByIRHb-z-Apm4Y5LX1T", input_size=320, crop=1.0, **HALVES, top1=87.8
    ),
    "replknet_xl.megdata73m": checkpoint(
        "1CBHAEUlCzoHfiAQmMIjZhDMAIyHUmAAj", **HALVES, labels=None
    ),
}
KEYS = [
    (r"^stem(\d)", r"stem.\1"),
    (r"^stage(\d)_block(\d+)", r"stages.\1.blocks.\2"),
    (r"^transition(\d)_(\d)", r"transitions.\1.\2"),
    (r"/large_kernel/(conv|norm)$", r"/large_kernel/lkb_origin/\1"),
    (r"/large_kernel/(conv|norm)_k5_d1", r"/large_kernel/small_conv/\1"),
    (r"/norm$", "/bn"),
    (r"^head_norm", "norm"),
]


def conv_norm(filters, activation=None, name=None):
    return ConvNormAct(filters, activation=activation, kernel_initializer=TORCH_UNIFORM, name=name)


def depthwise(strides, name):
    """A 3x3 depthwise convolution, BatchNorm and ReLU."""
    return DepthwiseNormAct(
        3, strides, "relu", kernel_initializer=DEPTHWISE_TORCH_UNIFORM, name=name
    )


@keras.saving.register_keras_serializable("keras_convnets")
class RepLKBlock(Block):
    """x + pw2(relu(large_kernel(relu(pw1(norm(x)))))), figure 2.

    Input and output: (batch, height, width, width_of_stage).

    Args:
        width: channels of input and output.
        hidden: channels that the large kernel sees.
        kernel_size: its odd side.
        small_kernel: odd side of the parallel kernel that merges into it; 0 for none.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        kernel_size: int,
        small_kernel: int = 0,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.prelkb_bn = batch_norm()
        self.pw1 = conv_norm(hidden, "relu")
        branches = [(small_kernel, 1)] if small_kernel else []
        self.large_kernel = DilatedRepConv(kernel_size, branches, DEPTHWISE_TORCH_UNIFORM)
        self.activation = Activation("relu")
        self.pw2 = conv_norm(width)
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        y = self.activation(self.large_kernel(self.pw1(self.prelkb_bn(x))))
        return x + self.drop_path(self.pw2(y))


@keras.saving.register_keras_serializable("keras_convnets")
class ConvFFN(Block):
    """x + pw2(gelu(pw1(norm(x)))), four times as wide inside; figure 2.

    Input and output: (batch, height, width, width).
    """

    def __init__(self, width: int, drop_path: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.preffn_bn = batch_norm()
        self.pw1 = conv_norm(4 * width, "gelu")
        self.pw2 = conv_norm(width)
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        return x + self.drop_path(self.pw2(self.pw1(self.preffn_bn(x))))


@family(VARIANTS, WEIGHTS, KEYS)
def replknet(x, widths, kernel_sizes, depths, small_kernel=0, expansion=1.0, drop_path_rate=0.0):
    """Yields the output of each stage: strides 4, 8, 16, 32; returns the last one normalised.

    `depths`: pairs of `RepLKBlock` and `ConvFFN`; `expansion`: of the channels that a large kernel
    sees.
    """
    drop_path = stochastic_depth(drop_path_rate, depths)
    x = ConvNormAct(widths[0], 3, 2, "relu", kernel_initializer=TORCH_UNIFORM, name="stem0")(x)
    x = depthwise(1, "stem1")(x)
    x = conv_norm(widths[0], "relu", name="stem2")(x)
    x = depthwise(2, "stem3")(x)
    for stage, width in enumerate(widths):
        if stage:
            x = conv_norm(width, "relu", name=f"transition{stage - 1}_0")(x)
            x = depthwise(2, f"transition{stage - 1}_1")(x)
        for i, rate in enumerate(drop_path[stage]):
            x = RepLKBlock(
                width,
                int(width * expansion),
                kernel_sizes[stage],
                small_kernel,
                rate,
                name=f"stage{stage}_block{2 * i}",
            )(x)
            x = ConvFFN(width, rate, name=f"stage{stage}_block{2 * i + 1}")(x)
        yield x
    return batch_norm(name="head_norm")(x)


RepLKNet31B = application("replknet_31b")
RepLKNet31L = application("replknet_31l")
RepLKNetXL = application("replknet_xl")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
