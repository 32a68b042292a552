"""RepNeXt: do kernels that train as sums of smaller ones learn better than the merged kernels?

Both networks start as the same function and end in the same form: the second is the first with its
branches merged before training rather than after.
"""

from __future__ import annotations

import keras
import numpy as np
from common import accuracy, arguments, digits

from keras_convnets.applications.repnext import RepNeXtBlock, RepNeXtDownsample
from keras_convnets.graph import reparameterize
from keras_convnets.layers import ConvNormAct


def network():
    """32x32 pixels, then two blocks on 16x16 and two on 8x8, 16 and 32 channels."""
    x = inputs = keras.Input((32, 32, 3))
    x = ConvNormAct(16, 3, 2, "gelu")(x)
    for _ in range(2):
        x = RepNeXtBlock(16)(x)
    x = RepNeXtDownsample(32)(x)
    for _ in range(2):
        x = RepNeXtBlock(32)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def merged():
    return reparameterize(network())


def main():
    options = arguments(__doc__)
    data = digits(options.quick)
    epochs, seeds = (1, 1) if options.quick else (6, options.seeds)
    keras.utils.set_random_seed(0)
    model = network()
    ours, theirs = (
        keras.ops.convert_to_numpy(m(data[1][0], training=False))
        for m in (model, reparameterize(model))
    )
    apart = np.abs(ours - theirs).max() / np.abs(ours).max()
    print(f"Merged and not, one function: {apart:.1e} apart.\n")
    print("| trained | parameters | accuracy, % | deviation over seeds |\n|---|---|---|---|")
    for name, build in (("in branches", network), ("merged", merged)):
        scores = [accuracy(build, data, epochs, seed) for seed in range(seeds)]
        count = build().count_params()
        print(f"| {name} | {count:,} | {np.mean(scores):.2f} | {np.std(scores):.2f} |", flush=True)


if __name__ == "__main__":
    main()
