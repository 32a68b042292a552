"""Models with the signature and semantics of `keras.applications`, one module per family."""

from keras_convnets.applications.convnext import (
    ConvNeXtAtto,
    ConvNeXtBase,
    ConvNeXtFemto,
    ConvNeXtLarge,
    ConvNeXtNano,
    ConvNeXtPico,
    ConvNeXtSmall,
    ConvNeXtTiny,
    ConvNeXtV2Atto,
    ConvNeXtV2Base,
    ConvNeXtV2Femto,
    ConvNeXtV2Huge,
    ConvNeXtV2Large,
    ConvNeXtV2Nano,
    ConvNeXtV2Pico,
    ConvNeXtV2Small,
    ConvNeXtV2Tiny,
    ConvNeXtXLarge,
)
from keras_convnets.applications.densenet import (
    DenseNet121,
    DenseNet161,
    DenseNet169,
    DenseNet201,
    DenseNet264d,
)
from keras_convnets.applications.mobilenet_v1 import (
    MobileNetV1_100,
    MobileNetV1_100h,
    MobileNetV1_125,
)
from keras_convnets.applications.mobilenet_v2 import (
    MobileNetV2_035,
    MobileNetV2_050,
    MobileNetV2_075,
    MobileNetV2_100,
    MobileNetV2_110d,
    MobileNetV2_120d,
    MobileNetV2_130,
    MobileNetV2_140,
)
from keras_convnets.applications.mobilenet_v3 import (
    MobileNetV3Large_075,
    MobileNetV3Large_100,
    MobileNetV3Large_150d,
    MobileNetV3Small_050,
    MobileNetV3Small_075,
    MobileNetV3Small_100,
    TFMobileNetV3Large_075,
    TFMobileNetV3Large_100,
    TFMobileNetV3LargeMinimal_100,
    TFMobileNetV3Small_075,
    TFMobileNetV3Small_100,
    TFMobileNetV3SmallMinimal_100,
)
from keras_convnets.applications.repvgg import (
    RepVGG_A0,
    RepVGG_A1,
    RepVGG_A2,
    RepVGG_B0,
    RepVGG_B1,
    RepVGG_B1g4,
    RepVGG_B2,
    RepVGG_B2g4,
    RepVGG_B3,
    RepVGG_B3g4,
    RepVGG_D2se,
)
from keras_convnets.applications.resnet import (
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    WideResNet50_2,
    WideResNet101_2,
)
from keras_convnets.applications.vgg import (
    VGG11,
    VGG11_BN,
    VGG13,
    VGG13_BN,
    VGG16,
    VGG16_BN,
    VGG19,
    VGG19_BN,
)
