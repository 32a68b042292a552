"""Label sets in timm's order, and the decoding of predictions."""

import numpy as np
import pytest

from keras_convnets.labels import LABEL_SETS, decode_predictions, label_set


@pytest.mark.parametrize("name", LABEL_SETS)
def test_labels_equal_timm(timm, name):
    reference = timm.data.ImageNetInfo(name)
    classes = label_set(name)
    assert [synset for synset, _ in classes] == reference.label_names()
    assert [names for _, names in classes] == reference.label_descriptions()


def test_sizes_are_those_of_the_classifiers():
    assert [len(label_set(name)) for name in LABEL_SETS] == [1000, 11821, 21841]


def test_well_known_classes():
    classes = label_set("imagenet-1k")
    assert classes[0] == ("n01440764", "tench, Tinca tinca")
    assert classes[281] == ("n02123045", "tabby, tabby cat")
    assert classes[999][0] == "n15075141"


def test_decode_predictions():
    scores = np.zeros((2, 1000), np.float32)
    scores[0, [281, 282, 285]] = 0.5, 0.3, 0.125
    scores[1, 999] = 1
    first, second = decode_predictions(scores, top=3)
    assert first == [
        ("n02123045", "tabby", 0.5),
        ("n02123159", "tiger cat", float(np.float32(0.3))),
        ("n02124075", "Egyptian cat", 0.125),
    ]
    assert second[0] == ("n15075141", "toilet tissue", 1.0)
    assert len(decode_predictions(scores)[0]) == 5
    [[best]] = decode_predictions(np.arange(21841)[None], top=1, labels="imagenet-22k")
    assert best[2] == 21840


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preds": np.zeros((1, 10))}, r"\(batch, 1000\)"),
        ({"preds": np.zeros(1000)}, r"\(batch, 1000\)"),
        ({"preds": np.zeros((1, 1000)), "top": 0}, "between 1 and 1000"),
        ({"preds": np.zeros((1, 1000)), "labels": "imagenet"}, "imagenet-12k"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        decode_predictions(**arguments)
