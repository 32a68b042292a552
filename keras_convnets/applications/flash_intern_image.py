"""FlashInternImage: InternImage with DCNv4, whose groups sum moved taps by unbounded weights.

Paper: https://arxiv.org/abs/2401.06197. A block is a transformer's, with a deformable aggregation
for attention; DCNv4 leaves out the softmax over its nine taps. Differs from the reference: nothing.
The options that only InternImage H and G have are left out.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    DCNv4,
    DropPath,
    LayerScale,
    batch_norm,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation, Conv2D, Dense, LayerNormalization, ZeroPadding2D
from keras_convnets.layers.initializers import NORMAL_02, TORCH_UNIFORM
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "flash_intern_image_t": dict(depths=(4, 4, 18, 4), width=64),
    "flash_intern_image_s": dict(depths=(4, 4, 21, 4), width=80, post_norm=True),
    "flash_intern_image_b": dict(depths=(4, 4, 21, 4), width=112, post_norm=True, offset_scale=0.5),
    "flash_intern_image_l": dict(
        depths=(5, 5, 22, 5), width=160, post_norm=True, offset_scale=2.0, use_bias=True
    ),
    "flash_intern_image_test": dict(depths=(1, 2), width=16),
    "flash_intern_image_post_test": dict(
        depths=(1, 1), width=16, post_norm=True, offset_scale=2.0, use_bias=True
    ),
}
MIT = dict(license="mit", crop=1.0)
HUB = "https://huggingface.co/OpenGVLab/DCNv4/resolve/main"
WEIGHTS = {
    "flash_intern_image_t.in1k": Checkpoint(
        **MIT, source=f"{HUB}/flash_intern_image_t_1k_224.pth", top1=83.6
    ),
    "flash_intern_image_s.in1k": Checkpoint(
        **MIT, source=f"{HUB}/flash_intern_image_s_1k_224.pth", top1=84.4
    ),
    "flash_intern_image_b.in1k": Checkpoint(
        **MIT, source=f"{HUB}/flash_intern_image_b_1k_224.pth", top1=84.9
    ),
    "flash_intern_image_l.in22k_ft_in1k_384": Checkpoint(
        **MIT, source=f"{HUB}/flash_internimage_l_22kto1k_384.pth", input_size=384, top1=88.1
    ),
}
KEYS = [
    (r"^stem_(conv\d)", r"patch_embed.\1"),
    (r"^stem_(norm\d)", r"patch_embed.\1.1"),
    (r"^stage(\d)_block(\d+)/", r"levels.\1.blocks.\2/"),
    (r"^stage(\d)_norm", r"levels.\1.norm.0"),
    (r"^stage(\d)_downsample_conv", r"levels.\1.downsample.conv"),
    (r"^stage(\d)_downsample_norm", r"levels.\1.downsample.norm.1"),
    (r"/(norm\d)", r"/\1.0"),
    (r"/(fc\d)", r"/mlp/\1"),
    (r"/dcn/depthwise", "/dcn/offset_mask_dw"),
    (r"/dcn/project_in", "/dcn/value_proj"),
    (r"/dcn/project_out", "/dcn/output_proj"),
    (r"/scale(\d)", r"/gamma\1"),
    (r"^last_conv", "conv_head.0"),
    (r"^last_norm", "conv_head.1.0"),
]
LAYOUTS = {LayerScale: {"gamma": ("", (0,))}}


def layer_norm(name=None):
    return LayerNormalization(epsilon=1e-6, name=name)


@keras.saving.register_keras_serializable("keras_convnets")
class FlashInternImageBlock(Block):
    """x + dcn(norm(x)), then x + mlp(norm(x)); in the larger variants x + scale(norm(dcn(x))), and
    so on, with a depthwise convolution before the offsets and weights.

    Input and output: (batch, height, width, width_of_stage), with a group for each 16 channels.

    Args:
        width: channels of input and output; a quarter of those inside the MLP.
        post_norm: whether it is one of the larger variants.
        offset_scale: factor of the kernel's grid and of the offsets.
        use_bias: whether the last layers of both branches have biases.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        width: int,
        post_norm: bool = False,
        offset_scale: float = 1.0,
        use_bias: bool = False,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.post_norm = post_norm
        self.norm1 = layer_norm()
        self.dcn = DCNv4(
            width,
            groups=width // 16,
            offset_scale=offset_scale,
            depthwise_kernel_size=3 if post_norm else None,
            output_bias=use_bias,
        )
        self.scale1 = LayerScale(1e-5) if post_norm else None
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = layer_norm()
        self.fc1 = Dense(4 * width, "gelu", kernel_initializer=NORMAL_02)
        self.fc2 = Dense(width, use_bias=use_bias, kernel_initializer=NORMAL_02)
        self.scale2 = LayerScale(1e-5) if post_norm else None
        self.drop_path2 = DropPath(drop_path)

    def call(self, x):
        if self.post_norm:
            x = x + self.drop_path1(self.scale1(self.norm1(self.dcn(x))))
            return x + self.drop_path2(self.scale2(self.norm2(self.fc2(self.fc1(x)))))
        x = x + self.drop_path1(self.dcn(self.norm1(x)))
        return x + self.drop_path2(self.fc2(self.fc1(self.norm2(x))))


def halve(x, width, use_bias, name, number=""):
    """norm(convolution of stride 2)."""
    x = ZeroPadding2D(1, name=f"{name}_pad{number}")(x)
    x = Conv2D(
        width,
        3,
        2,
        use_bias=use_bias,
        kernel_initializer=TORCH_UNIFORM,
        name=f"{name}_conv{number}",
    )(x)
    return layer_norm(f"{name}_norm{number}")(x)


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_02, layouts=LAYOUTS)
def flash_intern_image(
    x, depths, width, post_norm=False, offset_scale=1.0, use_bias=False, drop_path_rate=0.0
):
    """Yields the output of each stage: strides 4, 8, 16, 32.

    `post_norm`, `offset_scale`, `use_bias`: as in `FlashInternImageBlock`.
    """
    drop_path = stochastic_depth(drop_path_rate, depths)
    x = Activation("gelu", name="stem_act")(halve(x, width // 2, True, "stem", 1))
    x = halve(x, width, True, "stem", 2)
    for stage, rates in enumerate(drop_path):
        if stage:
            x = halve(x, width * 2**stage, False, f"stage{stage - 1}_downsample")
        for i, rate in enumerate(rates):
            x = FlashInternImageBlock(
                width * 2**stage,
                post_norm,
                offset_scale,
                use_bias,
                rate,
                name=f"stage{stage}_block{i}",
            )(x)
        if not post_norm:
            x = layer_norm(f"stage{stage}_norm")(x)
        yield x
    x = Conv2D(
        int(1.5 * x.shape[-1]),
        1,
        use_bias=False,
        kernel_initializer=TORCH_UNIFORM,
        name="last_conv",
    )(x)
    return Activation("gelu", name="last_act")(batch_norm(name="last_norm")(x))


FlashInternImageT = application("flash_intern_image_t")
FlashInternImageS = application("flash_intern_image_s")
FlashInternImageB = application("flash_intern_image_b")
FlashInternImageL = application("flash_intern_image_l")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
