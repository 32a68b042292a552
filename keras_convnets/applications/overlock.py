"""OverLoCK: an overview of the whole image first, whose context then guides a closer look.

Paper: https://arxiv.org/abs/2502.20087. Differs from the reference: there is no auxiliary
classifier on the overview, which only its training uses; checkpoints have it, and it is left. The
published parameters are those of merged branches: `graph.reparameterize` gives that form, whose own
checkpoints are therefore no rows here.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    ContMixBlock,
    ConvMLP,
    DilatedRepConv,
    DropPath,
    GlobalResponseNorm,
    ResizeLike2D,
    batch_norm,
    stochastic_depth,
)
from keras_convnets.layers.context_mixing import (
    WindowBias,
    affine,
    conv_norm,
    depthwise3,
    layer_norm,
    pointwise,
    squeeze_excite,
)
from keras_convnets.layers.initializers import NORMAL_02
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "overlock_xt": dict(
        depths=(2, 2, 3, 2), widths=(56, 112, 256, 336), focus_depths=(6, 2), heads=(8, 12)
    ),
    "overlock_t": dict(
        depths=(4, 4, 6, 2), widths=(64, 128, 256, 512), focus_depths=(12, 2), heads=(8, 16)
    ),
    "overlock_s": dict(
        depths=(6, 6, 8, 3), widths=(64, 128, 320, 512), focus_depths=(16, 3), heads=(16, 32)
    ),
    "overlock_b": dict(
        depths=(8, 8, 10, 4), widths=(80, 160, 384, 576), focus_depths=(20, 4), heads=(12, 18)
    ),
    "overlock_test": dict(
        depths=(1, 1, 1, 1),
        widths=(8, 8, 8, 24),
        focus_depths=(2, 1),
        heads=(4, 6),
        kernel_sizes=(9, 7, 7, 5),
        expansion=2,
        focus_expansion=2,
        head_width=20,
    ),
}
RELEASE = "https://github.com/LMMMEng/OverLoCK/releases/download/v1"
WEIGHTS = {
    "overlock_xt.in1k": Checkpoint(
        "apache-2.0", source=f"{RELEASE}/overlock_xt_in1k_224.pth", crop=0.925, top1=82.7
    ),
    "overlock_t.in1k": Checkpoint(
        "apache-2.0", source=f"{RELEASE}/overlock_t_in1k_224.pth", crop=0.95, top1=84.2
    ),
    "overlock_s.in1k": Checkpoint(
        "apache-2.0", source=f"{RELEASE}/overlock_s_in1k_224.pth", crop=0.95, top1=84.8
    ),
    "overlock_b.in1k": Checkpoint(
        "apache-2.0", source=f"{RELEASE}/overlock_b_in1k_224.pth", crop=0.975, top1=85.1
    ),
}
KEYS = [
    *((rf"^stem{i}/conv", f"patch_embed1.{3 * i}") for i in range(4)),
    *((rf"^stem{i}/norm", f"patch_embed1.{3 * i + 1}") for i in range(4)),
    (r"^downsample(\d)", r"patch_embed\1"),
    (r"^focus_downsample", "patch_embedx.x_proj"),
    (r"^context_downsample", "patch_embedx.h_proj"),
    (r"^context", "high_level_proj"),
    (r"^head_conv", "head"),
    (r"^head$", "head.4"),
    (r"^(base|overview)(\d)_block", r"blocks\2."),
    (r"^focus(\d)_block", r"sub_blocks\1."),
    (r"large/conv_k(\d+)_d(\d)", r"large/dil_conv_k\1_\2"),
    (r"large/norm_k(\d+)_d(\d)", r"large/dil_bn_k\1_\2"),
    (r"large/conv", "large/lk_origin"),
    (r"large/norm", "large/origin_bn"),
    (r"squeeze/reduce", "squeeze/proj.1"),
    (r"squeeze/expand", "squeeze/proj.3"),
    (r"mlp/expand", "mlp/0"),
    (r"mlp/local", "mlp/2"),
    (r"mlp/norm", "mlp/3"),
    (r"mlp/project", "mlp/4"),
    (r"^(blocks.*)/local", r"\1/dwconv"),
    (r"^(blocks.*)/norm$", r"\1/proj/0"),
    (r"^(blocks.*)/large_norm", r"\1/proj/2"),
    (r"^(blocks.*)/large", r"\1/proj/1"),
    (r"^(blocks.*)/squeeze", r"\1/proj/3"),
    *((rf"^(blocks.*)/mlp/{i}", rf"\1/proj/{4 + i}") for i in (4, 3, 2, 0)),
    (r"^(blocks.*)/scale", r"\1/ls"),
    (r"/context_scale", "/x_scale"),
    (r"/prior_scale", "/h_scale"),
    (r"/local(\d)", r"/dwconv\1"),
    (r"/fuse_depthwise", "/fusion.0"),
    (r"/fuse_norm", "/fusion.1"),
    (r"/fuse_pointwise", "/fusion.3"),
    (r"/fuse_response", "/fusion.4"),
    (r"/mix/query", "/weight_query"),
    (r"/mix/key/conv", "/weight_key.1"),
    (r"/mix/key/norm", "/weight_key.2"),
    (r"/mix/taps", "/weight_proj"),
    (r"/mix/small_bias", "/rpb1"),
    (r"/mix/large_bias", "/rpb2"),
    (r"/mixed", "/dyconv_proj"),
    (r"/large_norm", "/lepe.1"),
    (r"/large", "/lepe.0"),
    (r"/squeeze", "/se_layer"),
    (r"/project_norm", "/proj.0"),
    (r"/project", "/proj.1"),
    (r"/scale(\d)", r"/ls\1"),
    (r"/conv$", ".0"),
    (r"/norm$", ".1"),
]
# Kernel sizes and dilations beside each large kernel.
BRANCHES = {
    17: [(5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)],
    15: [(5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)],
    13: [(5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)],
    9: [(5, 1), (7, 1), (5, 2), (3, 3), (3, 4)],
    7: [(5, 1), (3, 1), (3, 2), (3, 3)],
    5: [(3, 1), (3, 2)],
}


@keras.saving.register_keras_serializable("keras_convnets")
class OverLoCKBlock(Block):
    """scale(y) + mlp(squeeze(norm(large(layer_norm(y))))) of y = x + depthwise3x3(x).

    The block of the base and the overview network. Input and output: (batch, height, width,
    width_of_stage). `scaled`: whether the skip has a factor and a summand for each channel.
    """

    def __init__(
        self,
        width: int,
        kernel_size: int,
        hidden: int,
        scaled: bool,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.local = depthwise3()
        self.norm = layer_norm()
        self.large = DilatedRepConv(kernel_size, BRANCHES[kernel_size], NORMAL_02)
        self.large_norm = batch_norm()
        self.squeeze = squeeze_excite(width)
        self.mlp = ConvMLP(width, hidden)
        self.scale = affine() if scaled else None
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        x = x + self.local(x)
        y = self.squeeze(self.large_norm(self.large(self.norm(x))))
        skip = self.scale(x) if self.scale else x
        return skip + self.drop_path(self.mlp(y))


LAYOUTS = {
    GlobalResponseNorm: {"gamma": ("gamma", ((), 0, (), ())), "beta": ("beta", ((), 0, (), ()))},
    keras.layers.Dense: {"kernel": ("weight", (1, 0, (), ()))},
    WindowBias: {"bias": ("", (0, 1, 2))},
}


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_02, surplus=r"aux_head\.", layouts=LAYOUTS)
def overlock(
    x,
    depths,
    widths,
    focus_depths,
    heads,
    kernel_sizes=(17, 15, 13, 7),
    expansion=4,
    focus_expansion=3,
    head_width=1024,
    drop_path_rate=0.0,
):
    """Yields the base network's first two stages, then the focus network's two: strides 4 to 32.

    The map at stride 16 has the context after the features, as the reference's detectors take it.
    """
    drop_path = stochastic_depth(drop_path_rate, (*depths, *focus_depths))
    for i, (share, strides) in enumerate(((2, 2), (2, 1), (1, 2), (1, 1))):
        activation = "gelu" if i < 3 else None
        x = conv_norm(widths[0] // share, 3, strides, activation, name=f"stem{i}")(x)
    maps = []
    for stage, width in enumerate(widths):
        if stage:
            x = conv_norm(width, 3, 2, name=f"downsample{stage + 1}")(x)
        network = "overview" if stage == 3 else "base"
        for i, rate in enumerate(drop_path[stage]):
            x = OverLoCKBlock(
                width,
                kernel_sizes[stage],
                expansion * width,
                scaled=stage > 1,
                drop_path=rate,
                name=f"{network}{stage + 1}_block{i}",
            )(x)
        maps.append(x)
    yield maps[0]
    yield maps[1]

    context = widths[3] // 4
    overview = pointwise(context, name="context")(maps[3])
    prior = ResizeLike2D(name="prior")([overview, maps[2]])
    y = ops.concatenate([maps[2], prior], -1)
    for stage in (2, 3):
        if stage == 3:
            features, y = ops.split(y, [widths[2]], -1)
            features = conv_norm(widths[3], 3, 2, name="focus_downsample")(features)
            y = conv_norm(context, 3, 2, name="context_downsample")(y)
            y, prior = ops.concatenate([features, y], -1), overview
        for i, rate in enumerate(drop_path[stage + 2]):
            renew = stage == 3 or i > 0
            y = ContMixBlock(
                widths[stage],
                context,
                kernel_sizes[stage],
                BRANCHES[kernel_sizes[stage]],
                heads[stage - 2],
                focus_expansion * widths[stage],
                renew,
                rate,
                name=f"focus{stage + 1}_block{i}",
            )([y, prior] if renew else y)
        yield y
    return conv_norm(head_width, activation="silu", name="head_conv")(y)


OverLoCK_XT = application("overlock_xt")
OverLoCK_T = application("overlock_t")
OverLoCK_S = application("overlock_s")
OverLoCK_B = application("overlock_b")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
