"""NF-ResNet and NF-RegNet: known residual networks without their normalisation.

Paper: https://arxiv.org/abs/2101.08692, sections 3 and 4. Differs from the paper as timm does:
widths are multiples of 8, and the residual branch starts at zero by the gain of its last
convolution.
"""

from __future__ import annotations

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.nfnet import KEYS, nfnet
from keras_convnets.layers.initializers import NORMAL_01
from keras_convnets.registry import Checkpoint, family

REGNET = dict(
    stem="3x3",
    group_width=8,
    bottleneck=2.25,
    expands=True,
    attention="se",
)
RESNET = dict(
    stem="7x7",
    stem_width=64,
    widths=(256, 512, 1024, 2048),
    bottleneck=0.25,
    activation="relu",
    reduction=1 / 16,
)
VARIANTS = {
    "nf_regnet_b0": dict(depths=(1, 3, 6, 6), widths=(40, 80, 160, 328), final_width=960, **REGNET),
    "nf_regnet_b1": dict(depths=(2, 4, 7, 7), widths=(40, 80, 160, 328), final_width=960, **REGNET),
    "nf_regnet_b2": dict(
        depths=(2, 4, 8, 8), widths=(40, 88, 176, 368), final_width=1064, **REGNET
    ),
    "nf_regnet_b3": dict(
        depths=(2, 5, 9, 9), widths=(40, 96, 184, 400), final_width=1152, **REGNET
    ),
    "nf_regnet_b4": dict(
        depths=(2, 6, 11, 11), widths=(48, 112, 216, 464), final_width=1344, **REGNET
    ),
    "nf_regnet_b5": dict(
        depths=(3, 7, 14, 14), widths=(64, 128, 256, 528), final_width=1536, **REGNET
    ),
    "nf_resnet26": dict(depths=(2, 2, 2, 2), **RESNET),
    "nf_resnet50": dict(depths=(3, 4, 6, 3), **RESNET),
    "nf_resnet101": dict(depths=(3, 4, 23, 3), **RESNET),
    "nf_seresnet26": dict(depths=(2, 2, 2, 2), attention="se", **RESNET),
    "nf_seresnet50": dict(depths=(3, 4, 6, 3), attention="se", **RESNET),
    "nf_seresnet101": dict(depths=(3, 4, 23, 3), attention="se", **RESNET),
    "nf_ecaresnet26": dict(depths=(2, 2, 2, 2), attention="eca", **RESNET),
    "nf_ecaresnet50": dict(depths=(3, 4, 6, 3), attention="eca", **RESNET),
    "nf_ecaresnet101": dict(depths=(3, 4, 23, 3), attention="eca", **RESNET),
    "nf_regnet_test": dict(depths=(1, 1, 2, 1), widths=(16, 16, 24, 24), final_width=40, **REGNET),
}
WEIGHTS = {
    "nf_regnet_b1.ra2_in1k": Checkpoint("apache-2.0", input_size=256, crop=0.9, top1=78.71),
    "nf_resnet50.ra2_in1k": Checkpoint("apache-2.0", input_size=256, crop=0.94, top1=80.236),
}


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_01)
def nf_resnet(x, drop_path_rate=0.0, **variant):
    """Yields a convolution of the stem and each stage, as `nfnet` does: strides 2, 4, 8, 16, 32."""
    return nfnet(x, drop_path_rate=drop_path_rate, **variant)


NFRegNetB0 = application("nf_regnet_b0")
NFRegNetB1 = application("nf_regnet_b1")
NFRegNetB2 = application("nf_regnet_b2")
NFRegNetB3 = application("nf_regnet_b3")
NFRegNetB4 = application("nf_regnet_b4")
NFRegNetB5 = application("nf_regnet_b5")
NFResNet26 = application("nf_resnet26")
NFResNet50 = application("nf_resnet50")
NFResNet101 = application("nf_resnet101")
NFSEResNet26 = application("nf_seresnet26")
NFSEResNet50 = application("nf_seresnet50")
NFSEResNet101 = application("nf_seresnet101")
NFECAResNet26 = application("nf_ecaresnet26")
NFECAResNet50 = application("nf_ecaresnet50")
NFECAResNet101 = application("nf_ecaresnet101")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
