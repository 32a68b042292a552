"""examples/train_imagenet.py: the same losses on any number of workers, killed and resumed or not.

Several devices and processes are real ones, as far as one machine has them: eight simulated devices
on JAX, and two processes over the loopback interface on each backend.
"""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from keras_convnets import create_model
from keras_convnets.weights.readers import read_state

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_imagenet as example  # noqa: E402
import training_images  # noqa: E402

BACKEND = keras.backend.backend()
# BatchNorm sees the whole batch on JAX and TensorFlow; on PyTorch, each worker's part of it.
MODEL = "convnext_test" if BACKEND == "torch" else "repvgg_test"
SIZE, BATCH, CLASSES, IMAGES, VALIDATION_IMAGES = 32, 8, 3, 8, 3
# Of 6 steps, three to an epoch, killed in the middle of the second round, two steps each.
EPOCHS, ROUND, KILLED_AT = 2, 2, 3
# What random numbers mix is the same on any number of devices on JAX, which runs one program.
MIXING = ("--mixup", "0.2", "--cutmix", "1") if BACKEND == "jax" else ()

CHILD = """
import os, signal, sys
import train_imagenet as example

class Killed(example.Rounds):
    seen = 0

    def on_train_begin(self, logs=None):
        if example.BACKEND == "jax":
            weights = self.model.trainable_variables
            print("split", sum(not v.value.sharding.is_fully_replicated for v in weights))

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        self.seen += 1
        if os.environ.get("KILLED_AT") == str(self.seen):
            os.kill(os.getpid(), signal.SIGKILL)

example.Rounds = Killed
example.train(example.parse())
"""


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """JAX finds what was compiled before, in this process or in others of these tests."""
    if BACKEND != "jax":
        yield
        return
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        compilation_cache.reset_cache()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Noise, brighter from class to class."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, number in (("train", IMAGES), ("val", VALIDATION_IMAGES)):
        for label in range(CLASSES):
            where = folder / part / f"class{label}"
            where.mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 120, (40 + i, 48, 3)) + 60 * label
                Image.fromarray(pixels.astype("uint8")).save(where / f"{i}.png")
    return folder


def arguments(data, out, *more) -> list[str]:
    """Of the run that the tests compare with; what is in `more` wins."""
    words = (
        f"{data / 'train'} --validation {data / 'val'} --out {out} --model {MODEL} --size {SIZE}"
    )
    words += f" --batch {BATCH} --epochs {EPOCHS} --save-every {ROUND} --warmup-epochs 1"
    return [*words.split(), "--learning-rate", "0.002", *MIXING, *more]


def run(data, out, *more) -> list[dict]:
    """Trains in this process; the lines of the log."""
    example.train(example.parse(arguments(data, out, *more)))
    return log(out)


def log(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def child(words, **environment) -> subprocess.Popen:
    path = os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *words],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_ports(number) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def devices(number) -> dict[str, str]:
    """The environment in which JAX has as many of them."""
    flag = f" --xla_force_host_platform_device_count={number}"
    return {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + flag}


def two_workers(words, killed_at="") -> list[subprocess.Popen]:
    """As each backend finds them; the second one dies after the step `killed_at`."""
    ports = free_ports(2)
    workers = []
    for i in range(2):
        if BACKEND == "jax":
            environment = {
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{ports[0]}",
                "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
                "KERAS_DISTRIBUTION_PROCESS_ID": str(i),
                **devices(4),
            }
        elif BACKEND == "tensorflow":
            cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
            task = {"type": "worker", "index": i}
            environment = {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}
        else:
            environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
            environment |= {"WORLD_SIZE": "2", "RANK": str(i), "LOCAL_RANK": str(i)}
        environment["KILLED_AT"] = str(killed_at) if i == 1 else ""
        workers.append(child(words, **environment))
    return workers


def same(found: list[dict], wanted: list[dict]) -> None:
    """Lines of two logs, but for the speed."""
    for one, other in zip(found, wanted, strict=True):
        assert one["step"] == other["step"]
        assert one["loss"] == pytest.approx(other["loss"], rel=5e-5)
        assert one["accuracy"] == pytest.approx(other["accuracy"], abs=1e-6)
        assert one.keys() == other.keys()
        if "validation_accuracy" in one:
            right = other["validation_accuracy"]
            assert one["validation_accuracy"] == pytest.approx(right, abs=1e-6)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """`(folder, log)` of the whole run on one device."""
    out = tmp_path_factory.mktemp("undisturbed")
    lines = run(data, out)
    assert [line["step"] for line in lines] == [2, 4, 6]
    # Where an epoch ends.
    assert ["validation_accuracy" in line for line in lines] == [False, True, True]
    losses = [line["loss"] for line in lines]
    assert all(abs(a - b) > 8e-5 * b for a, b in pairwise(losses)), losses
    return out, lines


def test_killed_worker(data, undisturbed, tmp_path):
    """Two workers, on JAX with four devices each, train as one device does. One of them is killed
    a step after the checkpoint: it is repeated and no more, and what follows is as if nothing
    had happened."""
    _, wanted = undisturbed
    words = arguments(data, tmp_path)
    first, second = two_workers(words, KILLED_AT)
    try:
        said, _ = second.communicate(timeout=300)
        assert second.returncode == -signal.SIGKILL, said
    finally:
        first.kill()  # it waits for the other one, or has given it up
        said, _ = first.communicate()
    number = 8 if BACKEND == "jax" else 2
    assert f"{number} workers" in said and "3 rounds of 2 steps from step 0" in said, said
    same(log(tmp_path), wanted[:1])
    assert not (tmp_path / "model.safetensors").exists()

    run(data, tmp_path)  # with another number of workers
    same(log(tmp_path), wanted)


def test_result(data, undisturbed):
    """The weights load where any others do, and a run that is over stays so."""
    out, lines = undisturbed
    model = create_model(
        MODEL, weights=out / "model.safetensors", classes=CLASSES, input_shape=(SIZE, SIZE, 3)
    )
    source = training_images.open_source(data / "val")
    images, labels = zip(*(training_images.load(source, i, SIZE, None) for i in range(source.size)))
    mean, std = example.IMAGENET_MEAN, example.IMAGENET_STD
    scores = model.predict((np.float32(images) / 255 - mean) / std, verbose=0)
    found = float(np.mean(scores.argmax(-1) == labels))
    assert found == pytest.approx(lines[-1]["validation_accuracy"])
    assert (out / "classes.txt").read_text().split() == source.classes

    before = {
        name: np.array(value) for name, value in read_state(out / "model.safetensors").items()
    }
    (out / "model.safetensors").unlink()
    assert run(data, out) == lines
    after = read_state(out / "model.safetensors")
    assert set(after) == set(before)
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_model_parallel(data, undisturbed, tmp_path):
    """On eight devices, four of them for each model, which has grouped convolutions too."""
    if BACKEND != "jax":
        with pytest.raises(ValueError, match=r"--model-parallel works on JAX only.*KERAS_BACKEND"):
            run(data, tmp_path, "--model-parallel", "2")
        return
    process = child(arguments(data, tmp_path, "--model-parallel", "4"), **devices(8))
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "2 workers" in said
    assert int(re.search(r"^split (\d+)$", said, re.MULTILINE)[1]) > 5
    same(log(tmp_path), undisturbed[1])
    with pytest.raises(ValueError, match=r"--model-parallel 2 does not divide the 1 devices"):
        run(data, tmp_path, "--model-parallel", "2")


def test_all_augmentations(data, tmp_path):
    """Mixed precision, an average of the weights, and all that changes the images."""
    more = "--epochs 1 --save-every 3 --ema 0.5 --mixed --mixup 0.2 --cutmix 1"
    # XLA takes minutes to compile this for a CPU.
    more += " --rand-augment 0.3" if BACKEND != "jax" else ""
    lines = run(data, tmp_path, *more.split())
    assert len(lines) == 1 and math.isfinite(lines[0]["loss"])
    # The result has the averages, the checkpoint both.
    checkpoint = read_state(tmp_path / example.CHECKPOINT)
    result = read_state(tmp_path / "model.safetensors")
    values = [np.sort(result[name], axis=None).tobytes() for name in result]
    averages = [name for name in checkpoint if name.endswith("_average")]
    trained = [name for name in checkpoint if name.endswith("/kernel")]
    assert len(averages) > len(trained) > 5
    assert all(np.sort(checkpoint[name], axis=None).tobytes() in values for name in averages)
    assert not any(np.sort(checkpoint[name], axis=None).tobytes() in values for name in trained)


def test_order(data):
    """Any step is known by itself; parts of a batch make up the whole; all images have turns."""
    source = training_images.open_source(data / "train")

    def steps(start, number, share=0, shares=1):
        batches = training_images.training_batches(source, BATCH, SIZE, 0, start, share, shares)
        return [inputs for (inputs, _), _ in zip(batches, range(number), strict=False)]

    whole = steps(0, 6)
    parts = zip(steps(0, 6, 0, 2), steps(0, 6, 1, 2), strict=True)
    for one, two in zip(whole, parts, strict=True):
        for key in ("images", "labels"):
            np.testing.assert_array_equal(one[key], np.concatenate([part[key] for part in two]))
    np.testing.assert_array_equal(steps(5, 1)[0]["images"], whole[5]["images"])
    for epoch in (whole[:3], whole[3:]):
        labels = np.concatenate([inputs["labels"] for inputs in epoch])
        assert np.bincount(labels).tolist() == [IMAGES] * CLASSES
    assert not np.array_equal(whole[0]["labels"], whole[3]["labels"])

    held_out = training_images.open_source(data / "val")
    assert training_images.validation_steps(held_out, BATCH) == 2
    weights = np.zeros(2)
    for share in range(2):
        batches = training_images.validation_batches(held_out, BATCH, SIZE, share, 2)
        weights[share] = sum(weight.sum() for (*_, weight), _ in zip(batches, range(2)))
        assert weights[share] == training_images.share_size(held_out, BATCH, share, 2)
    assert weights.sum() == held_out.size == CLASSES * VALIDATION_IMAGES


def test_tfrecords(data, tmp_path):
    """Two files give what the folder gives, and errors say what is wrong with a record. Other
    backends read them too, but where TensorFlow is not loaded anyway the test would load it."""
    if BACKEND != "tensorflow":
        (tmp_path / "a.tfrecord").touch()
        with pytest.raises(ValueError, match=r"do not tell how many classes.*--classes"):
            training_images.open_source(tmp_path)
        return
    import tensorflow as tf

    def write(path, examples):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for features in examples:
                writer.write(
                    tf.train.Example(
                        features=tf.train.Features(feature=features)
                    ).SerializeToString()
                )

    def features(data, label):
        return {
            "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data])),
            "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        }

    folder = training_images.open_source(data / "train")
    wanted = [folder.read(i)[:2] for i in range(folder.size)]
    examples = [features(*pair) for pair in wanted]
    write(tmp_path / "train.tfrecord-0", examples[:10])
    write(tmp_path / "train.tfrecord-1", examples[10:])
    records = training_images.open_source(tmp_path, CLASSES)
    assert records.size == folder.size and len(records.classes) == CLASSES
    assert [records.read(i)[:2] for i in range(records.size)] == wanted
    one, other = (training_images.load(s, 13, SIZE, (0, 1, 2)) for s in (folder, records))
    np.testing.assert_array_equal(one[0], other[0])

    with pytest.raises(ValueError, match=r"label 2; --classes 2 allows less"):
        training_images.open_source(tmp_path, 2).read(records.size - 1)
    write(tmp_path / "train.tfrecord-2", [{"image": examples[0]["image/encoded"]}])
    with pytest.raises(ValueError, match=r"has the features image; it needs image/encoded"):
        training_images.open_source(tmp_path, CLASSES).read(records.size)
    whole = (tmp_path / "train.tfrecord-2").read_bytes()
    (tmp_path / "train.tfrecord-2").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"no whole TFRecord: what begins at byte 0"):
        training_images.open_source(tmp_path, CLASSES)


def test_bad_folders(data, tmp_path):
    with pytest.raises(ValueError, match=r"is not a folder; name one"):
        run(tmp_path / "nothing", tmp_path)
    with pytest.raises(ValueError, match=r"0 subfolders and 0 files.*each of at least two classes"):
        training_images.open_source(tmp_path)
    with pytest.raises(ValueError, match=r"0 subfolders and 8 files.*Put the images there"):
        training_images.open_source(data / "train" / "class0")
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "cat" / "1.png")
    with pytest.raises(ValueError, match=r"no image .* for the classes dog; add some"):
        training_images.open_source(tmp_path)
    (tmp_path / "dog" / "2.png").write_bytes(b"not a picture")
    source = training_images.open_source(tmp_path)
    assert training_images.load(source, 0, SIZE, (0,))[0].shape == (SIZE, SIZE, 3)
    with pytest.raises(ValueError, match=r"dog/2.png is no image.*remove or mend it"):
        training_images.load(source, 1, SIZE, None)
    with pytest.raises(ValueError, match=r"each of 2 classes, --classes says 5"):
        training_images.open_source(tmp_path, 5)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"must have the same classes.*cat, class0"):
        run(data, out, "--validation", str(tmp_path))
    with pytest.raises(ValueError, match=r"has 24 images, fewer than --batch 32"):
        run(data, out, "--batch", "32")
    assert not out.exists()


def test_bad_batch(data, tmp_path, monkeypatch, capsys):
    name = {"jax": "Jax", "tensorflow": "TensorFlow", "torch": "Torch"}[BACKEND]
    engine = type("Three", (example.Engine,), {"devices": 3})
    monkeypatch.setattr(example, name, lambda *_: engine())
    with pytest.raises(ValueError, match=r"--batch 8 is not divisible by 3 workers.*3 times 3"):
        run(data, tmp_path)
    if BACKEND == "jax":
        engine.processes = 2
        with pytest.raises(ValueError, match=r"over several processes; leave one of them out"):
            run(data, tmp_path, "--model-parallel", "2", "--ema", "0.9")
    with pytest.raises(SystemExit):
        run(data, tmp_path, "--batch", "0")
    assert "--batch 0 must be 1 or more" in capsys.readouterr().err


def test_other_checkpoint(data, undisturbed, tmp_path, monkeypatch):
    """What a run began with is what it goes on with; and every worker from the same step."""
    out, lines = undisturbed
    with pytest.raises(ValueError, match=r"another run \(seed 0 there, 1 here\).*another --out"):
        run(data, out, "--seed", "1")
    with pytest.raises(ValueError, match=f"model '{MODEL}' there, 'vgg_test' here"):
        run(data, out, "--model", "vgg_test")
    name = {"jax": "Jax", "tensorflow": "TensorFlow", "torch": "Torch"}[BACKEND]
    monkeypatch.setattr(getattr(example, name), "mean", lambda self, value: value / 2)
    with pytest.raises(ValueError, match=r"different checkpoints.*all of them share"):
        run(data, out)
    assert log(out) == lines
