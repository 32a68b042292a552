"""Deformable convolution and aggregation against an explicit loop and the reference code."""

from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_convnets.ops import deform_aggregate, deform_conv2d
from tests.ops.backends import (
    BACKEND,
    FEW,
    assert_within_eps,
    compiled,
    for_one_call,
    numpy,
    value_and_gradients,
)


def loop(x, offset, mask, cotangent, taps, strides, before, rate):
    """Samples of each tap, and the gradients of sum(samples * mask * cotangent).

    `cotangent` is `(batch, out_height, out_width, groups, taps, channels / groups)`.
    """
    x, offset, mask, g = (a.astype("float64") for a in (x, offset, mask, cotangent))
    _, height, width, channels = x.shape
    members = channels // offset.shape[3]
    samples, gx = np.zeros(g.shape), np.zeros(x.shape)
    g_offset, g_mask = np.zeros(offset.shape), np.zeros(mask.shape)
    for n, p, q, d, t in np.ndindex(*offset.shape[:5]):
        place = (n, p, q, d, t)
        channel = slice(d * members, (d + 1) * members)
        y, z = (
            o * s - b + i * r + moved
            for o, s, b, i, r, moved in zip((p, q), strides, before, taps[t], rate, offset[place])
        )
        for h in (int(np.floor(y)), int(np.floor(y)) + 1):
            for w in (int(np.floor(z)), int(np.floor(z)) + 1):
                if not (0 <= h < height and 0 <= w < width):
                    continue
                a, b = 1 - abs(y - h), 1 - abs(z - w)
                pixel = x[n, h, w, channel]
                samples[place] += a * b * pixel
                product = g[place] @ pixel
                gx[n, h, w, channel] += mask[place] * a * b * g[place]
                g_mask[place] += a * b * product
                g_offset[place][0] += mask[place] * b * product * (1 if h > y else -1)
                g_offset[place][1] += mask[place] * a * product * (1 if w > z else -1)
    return samples, gx, g_offset, g_mask


def example(size, kernel_size=(3, 3), strides=(1, 1), padding=(1, 1), rate=(1, 1), **more):
    groups, offset_groups, filters = more.get("groups", 1), more.get("offset_groups", 1), 6
    channels, rng = 12, np.random.default_rng(0)
    outputs = [
        (n + 2 * z - (k - 1) * r - 1) // s + 1
        for n, k, s, z, r in zip(size, kernel_size, strides, padding, rate)
    ]
    taps = kernel_size[0] * kernel_size[1]

    def draw(*shape):
        return rng.normal(size=shape).astype("float32")

    offset = 2 * draw(2, *outputs, offset_groups, taps, 2)
    arrays = (
        draw(2, *size, channels),
        offset + (np.abs(offset - np.round(offset)) < 0.01) * np.float32(0.02),  # off the pixels
        draw(*kernel_size, channels // groups, filters),
        draw(2, *outputs, offset_groups, taps),
        draw(2, *outputs, filters),
    )
    return arrays, {"strides": strides, "padding": padding, "dilation_rate": rate}


SHAPES = {
    "plain": example((5, 6)),
    "groups within offset groups": example((5, 4), groups=6, offset_groups=2),
    "offset groups within groups": example((4, 5), groups=2, offset_groups=6),
    "stride, dilation": example((7, 6), (3, 2), (2, 1), (2, 0), (2, 3), offset_groups=3),
}


def check_convolution(run, arrays, arguments, dtype="float32"):
    x, offset, kernel, mask, g = (a.astype("float64") for a in arrays)
    kh, kw, members, filters = kernel.shape
    groups, offset_groups = x.shape[3] // members, offset.shape[3]
    dense = np.zeros((kh * kw, x.shape[3], filters))  # the kernel without groups
    for c, f in np.ndindex(x.shape[3], filters):
        if c // members == f // (filters // groups):
            dense[:, c, f] = kernel[:, :, c % members, f].ravel()
    # (batch, out_height, out_width, taps, channels), and with the channels in offset groups
    cotangent = np.einsum("npqf,tcf->npqtc", g, dense)
    cotangent = cotangent.reshape(*cotangent.shape[:4], offset_groups, -1).transpose(
        0, 1, 2, 4, 3, 5
    )
    taps = [(i, j) for i in range(kh) for j in range(kw)]
    before, strides, rate = (arguments[k] for k in ("padding", "strides", "dilation_rate"))
    samples, *gradients = loop(x, offset, mask, cotangent, taps, strides, before, rate)
    columns = (samples * mask[..., None]).transpose(0, 1, 2, 4, 3, 5)
    columns = columns.reshape(*columns.shape[:4], -1)
    y = np.einsum("npqtc,tcf->npqf", columns, dense)
    g_dense = np.einsum("npqtc,npqf->tcf", columns, g)
    g_kernel = np.zeros(kernel.shape)
    for c, f in np.ndindex(x.shape[3], filters):
        if c // members == f // (filters // groups):
            g_kernel[:, :, c % members, f] = g_dense[:, c, f].reshape(kh, kw)
    to_x, to_offset, to_mask = gradients
    expected = (y, to_x, to_offset, g_kernel, to_mask)
    actual = value_and_gradients(run, arrays[:4], arrays[4])
    outputs, terms = np.prod(g.shape[:3]), kh * kw * x.shape[3]
    for a, e, n in zip(actual, expected, (terms, terms, terms, outputs, terms)):
        assert_within_eps(a, e, n, dtype)


@pytest.mark.parametrize("name", SHAPES)
def test_convolution(name):
    arrays, arguments = SHAPES[name]
    check_convolution(compiled(lambda *a: deform_conv2d(*a, **arguments)), arrays, arguments)


def test_convolution_not_compiled():
    arrays, arguments = SHAPES["stride, dilation"]
    check_convolution(lambda *a: deform_conv2d(*a, **arguments), arrays, arguments)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 2, 3]),
    offset_groups=st.sampled_from([1, 2, 4]),
)
def test_any_shape(size, kernel, groups, offset_groups):
    arrays, arguments = example(size, kernel, groups=groups, offset_groups=offset_groups)
    check_convolution(compiled(lambda *a: deform_conv2d(*a, **arguments)), arrays, arguments)


@FEW
@given(
    more=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.sampled_from([(3, 3), (1, 3), (1, 1)]),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    offset_groups=st.sampled_from([1, 3, 6]),
    remove_center=st.booleans(),
)
def test_any_aggregate(more, kernel, strides, padding, offset_groups, remove_center):
    size = [k + n - 1 for k, n in zip(kernel, more)]
    remove_center = remove_center and kernel != (1, 1)
    (x, offset, _, mask, _), arguments = example(
        size, kernel, strides, padding, offset_groups=offset_groups
    )
    taps = list(np.ndindex(*kernel))
    if remove_center:
        middle = len(taps) // 2
        del taps[middle]
        offset, mask = np.delete(offset, middle, 4), np.delete(mask, middle, 4)
    members = 12 // offset_groups
    g = np.random.default_rng(1).normal(size=(*mask.shape[:3], 12)).astype("float32")
    cotangent = g.reshape(*mask.shape[:4], 1, members).repeat(len(taps), 4)
    samples, *gradients = loop(x, offset, mask, cotangent, taps, strides, padding, (1, 1))
    y = (samples * mask[..., None]).sum(4).reshape(g.shape)
    run = for_one_call(
        lambda *arrays: deform_aggregate(*arrays, kernel, **arguments, remove_center=remove_center)
    )
    actual = value_and_gradients(run, [x, offset, mask], g)
    for a, e in zip(actual, (y, *gradients), strict=True):
        assert_within_eps(a, e, 4 * len(taps) * members)


def test_without_offsets_it_is_a_convolution():
    x = np.random.default_rng(0).normal(size=(2, 6, 7, 4)).astype("float32")
    kernel = np.random.default_rng(1).normal(size=(3, 3, 2, 6)).astype("float32")
    for strides, padding in ((1, "same"), (2, "same"), (2, "valid")):
        expected = keras.ops.conv(x, kernel, strides, padding)
        offset = np.zeros((2, *expected.shape[1:3], 1, 9, 2), "float32")
        y = deform_conv2d(x, offset, kernel, strides=strides, padding=padding)
        assert_within_eps(numpy(y), numpy(expected), 18)


def test_far_and_endless_offsets():
    """Whole pixels far outside are zero; an offset that is no number gives none, and no crash."""
    x = np.ones((1, 4, 4, 1), "float32")
    mask = np.ones((1, 4, 4, 1, 1), "float32")
    offset = np.zeros((1, 4, 4, 1, 1, 2), "float32")
    offset[0, 0, :, 0, 0, 0] = [1e9, -1e9, 1e30, -1e30]
    offset[0, 1, 1, 0, 0, 1] = np.nan
    y = numpy(deform_aggregate(x, offset, mask, 1))[0, :, :, 0]
    np.testing.assert_array_equal(y[0], 0)
    assert np.isnan(y[1, 1]) and np.isnan(y).sum() == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    arrays, arguments = SHAPES["plain"]
    arrays = [numpy(keras.ops.cast(a, dtype)) for a in arrays]

    def run(*arrays):
        y = deform_conv2d(*(keras.ops.cast(a, dtype) for a in arrays), **arguments)
        assert keras.backend.standardize_dtype(y.dtype) == dtype
        return keras.ops.cast(y, "float32")

    check_convolution(run, arrays, arguments, dtype)


# Arrays of the reference code, run with random weights: DCNv1 and v2 as torchvision lays them out,
# DCNv3 of github.com/OpenGVLab/InternImage at 31c962d, DCNv4 of github.com/OpenGVLab/DCNv4 at
# 4b848f7; gradients are of sum(output * cotangent).
with np.load(Path(__file__).parent / "data" / "deform.npz") as file:
    RECORDED = {name: file[name] for name in file.files}


def recorded(case):
    return {k.removeprefix(f"{case}/"): v for k, v in RECORDED.items() if k.startswith(f"{case}/")}


def channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def compare(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert np.abs(a - e).max() <= 1e-5 * np.abs(e).max()


@pytest.mark.parametrize("case", ["v1", "v1_groups", "v2_groups", "v2_rect"])
def test_dcn_and_dcnv2(case):
    data = recorded(case)
    strides, padding, rate, _, groups = data["config"].tolist()

    def unpack(name, *last):
        array = channels_last(data[name])
        return array.reshape(*array.shape[:3], groups, -1, *last)

    def arrays(prefix=""):
        kernel = data[f"{prefix}weight"].transpose(2, 3, 1, 0)
        x, offset = channels_last(data[f"{prefix}input"]), unpack(f"{prefix}offset", 2)
        masks = [unpack(f"{prefix}mask")] if "mask" in data else []
        return [x, offset, kernel, *masks, data[f"{prefix}bias"]]

    sizes = {"strides": strides, "padding": padding, "dilation_rate": rate}
    run = compiled(lambda *a: deform_conv2d(*a[:-1], **sizes) + a[-1])
    actual = value_and_gradients(run, arrays(), channels_last(data["cotangent"]))
    compare(actual, [channels_last(data["output"]), *arrays("grad_")])


def by_rows(count):
    """Where each tap, counted by rows, is when they are counted by columns."""
    order = np.arange(9).reshape(3, 3).T.ravel()
    return order if count == 9 else [t - (t > 4) for t in order if t != 4]


@pytest.mark.parametrize("case", ["dcnv3_s2", "dcnv3_rc", "dcnv3_dil", "dcnv4", "dcnv4_rc"])
def test_dcnv3_and_dcnv4(case):
    """Points are counted by columns there, and offsets are (x, y), scaled with the whole grid."""
    data = recorded(case)
    strides, padding, rate, groups = data["config"][:4].astype(int).tolist()
    scale, remove_center = float(data["config"][4]), bool(data["config"][5])
    count = 9 - remove_center
    order = by_rows(count)
    grid = (np.delete(np.stack(np.indices((3, 3)), -1).reshape(9, 2), [4] * remove_center, 0)) - 1

    def run(x, offset, mask):
        shape = (*mask.shape[:3], groups, count)
        offset = keras.ops.take(keras.ops.reshape(offset, (*shape, 2)), order, axis=4)
        mask = keras.ops.take(keras.ops.reshape(mask, shape), order, axis=4)
        offset = scale * keras.ops.flip(offset, -1)
        offset += keras.ops.convert_to_tensor(grid * rate * (scale - 1), "float32")
        mask = keras.ops.softmax(mask) if case.startswith("dcnv3") else mask
        return deform_aggregate(x, offset, mask, 3, strides, padding, rate, remove_center)

    names = ("input", "offset", "mask_raw")
    actual = value_and_gradients(compiled(run), [data[n] for n in names], data["cotangent"])
    compare(actual, [data["output"], *(data[f"grad_{n}"] for n in names)])


@pytest.mark.skipif(BACKEND != "jax", reason="jax.vmap")
def test_vmap():
    import jax

    (x, offset, kernel, mask, g), arguments = SHAPES["plain"]

    def slope(x, offset, mask, g):
        return (deform_conv2d(x[None], offset[None], kernel, mask[None], **arguments) * g).sum()

    per_image = jax.vmap(jax.grad(slope))(x, offset, mask, g)
    whole = jax.grad(lambda x: (deform_conv2d(x, offset, kernel, mask, **arguments) * g).sum())(x)
    assert_within_eps(numpy(per_image), numpy(whole), 108)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_unknown_sizes(jit_compile):
    import tensorflow as tf

    arrays, arguments = SHAPES["stride, dilation"]
    run = tf.function(
        lambda *a: deform_conv2d(*a, **arguments),
        input_signature=[
            tf.TensorSpec((None, None, None, 12)),
            tf.TensorSpec((None, None, None, *arrays[1].shape[3:])),
            tf.TensorSpec(arrays[2].shape),
            tf.TensorSpec((None, None, None, *arrays[3].shape[3:])),
        ],
        jit_compile=jit_compile,
    )
    check_convolution(run, arrays, arguments)


class TestSymbolic:
    def test_shapes(self):
        x = keras.KerasTensor((None, None, 9, 4))
        offset = keras.KerasTensor((None, None, 5, 2, 9, 2))
        kernel = keras.KerasTensor((3, 3, 2, 6))
        assert deform_conv2d(x, offset, kernel, strides=(1, 2)).shape == (None, None, 5, 6)
        mask = keras.KerasTensor((None, None, 5, 2, 8))
        offset = keras.KerasTensor((None, None, 5, 2, 8, 2))
        y = deform_aggregate(x, offset, mask, 3, strides=(1, 2), remove_center=True)
        assert y.shape == (None, None, 5, 4)

    def test_saved_and_loaded(self, tmp_path):
        image, offset = keras.Input((5, 6, 4)), keras.Input((5, 6, 2, 9, 2))
        mask = keras.Input((5, 6, 2, 9))
        y = deform_aggregate(image, offset, keras.ops.softmax(mask), 3)
        kernel = keras.Input(batch_shape=(3, 3, 4, 2))
        model = keras.Model([image, offset, mask, kernel], deform_conv2d(y, offset, kernel, mask))
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        rng = np.random.default_rng(0)
        arrays = [rng.normal(size=(2, *t.shape[1:])).astype("float32") for t in model.inputs[:3]]
        arrays.append(rng.normal(size=kernel.shape).astype("float32"))
        np.testing.assert_array_equal(numpy(loaded(arrays)), numpy(model(arrays)))


class TestBadInput:
    @pytest.mark.parametrize("symbolic", [False, True])
    @pytest.mark.parametrize(
        "x, offset, kernel, mask, message",
        [
            ((1, 5, 5), (1, 5, 5, 1, 9, 2), (3, 3, 4, 6), None, "`x` must be"),
            ((1, 5, 5, 4), (1, 5, 5, 18), (3, 3, 4, 6), None, r"`offset` must be .*offset\.shape"),
            ((1, 5, 5, 4), (1, 5, 5, 1, 8, 2), (3, 3, 4, 6), None, "`offset` must be"),
            ((1, 5, 5, 4), (1, 4, 5, 1, 9, 2), (3, 3, 4, 6), None, "`offset` must be"),
            ((2, 5, 5, 4), (1, 5, 5, 1, 9, 2), (3, 3, 4, 6), None, "`offset` must be"),
            ((1, 5, 5, 4), (1, 5, 5, 3, 9, 2), (3, 3, 4, 6), None, "groups of `offset`"),
            ((1, 5, 5, 4), (1, 5, 5, 1, 9, 2), (3, 3, 4), None, "`kernel` must be"),
            ((1, 5, 5, 4), (1, 5, 5, 1, 9, 2), (3, 3, 3, 6), None, "`kernel` must be"),
            ((1, 5, 5, 4), (1, 5, 5, 1, 9, 2), (3, 3, 1, 6), None, "`kernel` must be"),
            (
                (1, 5, 5, 4),
                (1, 5, 5, 2, 9, 2),
                (3, 3, 4, 6),
                (1, 5, 5, 1, 9),
                r"`mask` must .*mask\.shape",
            ),
        ],
    )
    def test_shapes(self, x, offset, kernel, mask, message, symbolic):
        make = keras.KerasTensor if symbolic else (lambda shape: np.zeros(shape, "float32"))
        arrays = [make(shape) for shape in (x, offset, kernel)]
        with pytest.raises(ValueError, match=message):
            deform_conv2d(*arrays, mask and make(mask))

    def test_types(self):
        x, offset = np.zeros((1, 5, 5, 4), "float32"), np.zeros((1, 5, 5, 1, 9, 2), "int32")
        with pytest.raises(ValueError, match=r"`offset` must be of a float type"):
            deform_conv2d(x, offset, np.zeros((3, 3, 4, 4), "float32"))

    def test_no_centre(self):
        x = keras.KerasTensor((1, 5, 5, 4))
        with pytest.raises(ValueError, match=r"`remove_center` needs .*\(2, 3\)"):
            deform_aggregate(x, x, x, (2, 3), remove_center=True)
