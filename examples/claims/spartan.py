"""SpaRTAN's claim: channels mixed as waves, with the strongest channel's, beat a plain mixer.

Three networks: SpaRTAN; one whose channel mixer only multiplies amplitude and activated phase,
without complex factors and strongest channel; and one with the product's first factor only, the
usual 1x1, 3x3, 1x1 mixer.
"""

from __future__ import annotations

import keras
from common import accuracy, arguments, digits

from keras_convnets.applications import spartan

PLAN = dict(depths=(1, 1, 2, 1), widths=(8, 16, 24, 32))


class GatedMixer(spartan.WaveChannelMixer):
    """The mixer without waves."""

    def call(self, x):
        y = self.amplitude(x) * self.activation(self.theta(x))
        return self.proj_out(self.squeeze(self.conv(y)))


class PlainMixer(spartan.WaveChannelMixer):
    """The mixer without amplitudes."""

    def call(self, x):
        y = self.activation(self.theta(x))
        return self.proj_out(self.squeeze(self.conv(y)))


def network(mixer: type) -> keras.Model:
    image = keras.Input((32, 32, 3))
    block = spartan.WaveChannelMixer
    spartan.WaveChannelMixer = mixer
    *_, x = spartan.spartan(image, **PLAN)
    spartan.WaveChannelMixer = block
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(10)(x))
    for layer in model._flatten_layers():
        if hasattr(layer, "init_value"):  # blocks that start as nothing learn little in minutes
            layer.gamma.assign(keras.ops.full_like(layer.gamma, 0.1))
    return model


def main() -> None:
    options = arguments(__doc__)
    data = digits(options.quick)
    epochs, seeds = (1, 1) if options.quick else (8, options.seeds)
    print("| channel mixer | parameters | accuracy on the digits, % |")
    print("|---|---|---|")
    for name, mixer in (
        ("waves (SpaRTAN)", spartan.WaveChannelMixer),
        ("product of two projections", GatedMixer),
        ("one projection", PlainMixer),
    ):
        runs = [
            accuracy(lambda: network(mixer), data, epochs, seed)  # noqa: B023
            for seed in range(seeds)
        ]
        model = network(mixer)
        print(f"| {name} | {model.count_params():,} | {', '.join(f'{r:.1f}' for r in runs)} |")


if __name__ == "__main__":
    main()
