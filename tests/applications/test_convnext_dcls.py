"""ConvNeXt-dcls against numbers of the official code."""

import zlib
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_convnets import create_model
from keras_convnets.testing.conformance import assert_close, run, run_once
from keras_convnets.testing.golden import Golden, GoldenTests
from keras_convnets.testing.seeded import seeded_state


class TestConvNeXtDCLS(GoldenTests):
    family = "convnext_dcls"
    reference = Golden(Path(__file__).parent / "data/convnext_dcls")
    initial = ((r"\.P$", 0.5), (r"", 0.02))

    def test_positions_all_over_the_kernel(self):
        """Seeded positions lie near the centre; these have a deviation of 3, and large weights."""
        if keras.backend.backend() != "torch":
            return  # those of the small network reach the borders too
        variant = "convnext_dcls_tiny"
        state = seeded_state(self.reference.facts(variant, 224)[0])
        for key, value in state.items():
            stage = key[: len("stages.0.")]
            if key.endswith("dwconv.P"):
                state[key] = np.clip(3 * draw(f"{stage}0.dwconv.P", value), -8, 8)
            if key.endswith("dwconv.weight"):
                state[key] = draw(key, value) / value.shape[-1] ** 0.5
        state = {key: value.astype("float32") for key, value in state.items()}
        model = create_model(variant, weights=state, classifier_activation=None)
        x = np.random.RandomState(0).randn(1, 3, 224, 224).astype("float32")
        logits = run_once(model, x.transpose(0, 2, 3, 1))
        expected = self.reference.full[variant]["spread/logits"]
        assert_close(logits, expected, self.full_tolerance, "logits")

    def test_blocks_of_a_stage_move_together(self, tmp_path):
        model = self.seeded("convnext_dcls_test")
        first, second = (block.depthwise for block in model.get_layer("stage2").blocks)
        assert first.positions is second.positions
        assert sum("positions" in v.path for v in model.trainable_variables) == 4
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
        before = run(model, self.x)
        first, second = (block.depthwise for block in model.get_layer("stage2").blocks)
        first.positions.assign(-first.positions)
        np.testing.assert_array_equal(np.array(second.positions), np.array(first.positions))
        assert np.abs(run(model, self.x) - before).max() > 1e-3 * np.abs(before).max()

    def test_refuses_positions_that_differ_within_a_stage(self):
        state = dict(self.reference.example("convnext_dcls_test").state)
        state["stages.2.1.dwconv.P"] = state["stages.2.1.dwconv.P"] + 0.1
        with pytest.raises(ValueError, match=r"shared: stages\.2\.1\.dwconv\.P is stages\.2\.0"):
            create_model("convnext_dcls_test", weights=state)


def draw(key, value):
    return np.random.RandomState(zlib.crc32(key.encode())).randn(*value.shape)
