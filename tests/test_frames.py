"""Any pixels in, uint8 frames of one shape out."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from worldvae.frames import FrameSpec, to_frames, to_uint8, to_unit


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def resized_alone(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """One image by OpenCV's own area interpolation."""
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)


sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))


@settings(max_examples=400)
@given(
    source=sizes,
    target=sizes,
    batch=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_resizing_a_batch_equals_resizing_each_image_alone(
    source: tuple[int, int], target: tuple[int, int], batch: int, channels: int, seed: int
) -> None:
    images = noise(batch, *source, channels, seed=seed)
    frames = to_frames(images, FrameSpec(*target, channels))  # type: ignore[arg-type]
    assert frames.dtype == np.uint8
    alone = np.stack([resized_alone(image, *target) for image in images])
    np.testing.assert_array_equal(frames, alone)


@pytest.mark.parametrize("source", [(210, 160), (96, 96), (240, 320), (67, 65)])
def test_a_long_episode_is_resized_exactly_to_its_last_frame(source: tuple[int, int]) -> None:
    images = noise(400, *source, 3)
    frames = to_frames(images, FrameSpec(64, 64))
    np.testing.assert_array_equal(frames, np.stack([resized_alone(image, 64, 64) for image in images]))


@given(lead=st.lists(st.integers(0, 3), max_size=3), channels=st.sampled_from([1, 3]))
def test_leading_axes_are_kept(lead: list[int], channels: int) -> None:
    images = noise(*lead, 9, 8, channels)
    frames = to_frames(images, FrameSpec(4, 5, channels))  # type: ignore[arg-type]
    assert frames.shape == (*lead, 4, 5, channels)
    flat = to_frames(images.reshape(-1, 9, 8, channels), FrameSpec(4, 5, channels))  # type: ignore[arg-type]
    np.testing.assert_array_equal(frames.reshape(-1, 4, 5, channels), flat)


@given(st.tuples(*[st.integers(0, 5)] * 4))
def test_the_crop_cuts_top_bottom_left_right_source_pixels(crop: tuple[int, int, int, int]) -> None:
    image = noise(16, 18, 3)
    top, bottom, left, right = crop
    kept = image[top : 16 - bottom, left : 18 - right]
    frames = to_frames(image, FrameSpec(*kept.shape[:2], crop=crop))
    np.testing.assert_array_equal(frames, kept)


def test_frames_of_the_right_size_are_passed_on_bit_by_bit() -> None:
    images = noise(5, 24, 20, 3)
    np.testing.assert_array_equal(to_frames(images, FrameSpec(24, 20)), images)


def test_colour_becomes_grey_by_the_luma_weights() -> None:
    images = noise(3, 8, 8, 3)
    grey = to_frames(images, FrameSpec(8, 8, channels=1))
    assert grey.shape == (3, 8, 8, 1)
    luma = images @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey[..., 0] - luma).max() <= 0.51  # rounded, by fixed-point weights


def test_grey_becomes_three_equal_channels() -> None:
    images = noise(3, 8, 8, 1)
    colour = to_frames(images, FrameSpec(8, 8))
    np.testing.assert_array_equal(colour, np.concatenate([images] * 3, axis=-1))


def test_grey_images_need_no_channel_axis() -> None:
    images = noise(3, 20, 18)
    spec = FrameSpec(10, 9, channels=1)
    np.testing.assert_array_equal(to_frames(images, spec), to_frames(images[..., None], spec))
    np.testing.assert_array_equal(to_frames(images[0], spec), to_frames(images, spec)[0])


def test_views_of_any_memory_layout_give_the_same_frames() -> None:
    images = noise(4, 20, 20, 3)
    for spec in (FrameSpec(7, 9), FrameSpec(30, 31), FrameSpec(20, 20, 1)):
        for view in (images[:, ::-1], images[..., ::-1], images.transpose(0, 2, 1, 3)):
            np.testing.assert_array_equal(to_frames(view, spec), to_frames(view.copy(), spec))


@pytest.mark.parametrize("spec", [FrameSpec(20, 20), FrameSpec(7, 7, 1, crop=(1, 2, 3, 4)), FrameSpec(40, 40)])
def test_the_callers_pixels_are_never_changed(spec: FrameSpec) -> None:
    images = noise(4, 20, 20, 3)
    before = images.copy()
    to_frames(images, spec)
    np.testing.assert_array_equal(images, before)


def test_an_image_is_taken_out_of_a_dictionary_by_its_key() -> None:
    observation = {"screen": noise(2, 8, 8, 3), "speed": np.zeros((2, 1))}
    frames = to_frames(observation, FrameSpec(8, 8, key="screen"))
    np.testing.assert_array_equal(frames, observation["screen"])


@pytest.mark.parametrize("key", [None, "scren"])
def test_a_missing_key_is_told_with_the_keys_that_are_there(key: str | None) -> None:
    with pytest.raises(KeyError, match=r"screen.*speed"):
        to_frames({"screen": noise(8, 8, 3), "speed": np.zeros(1)}, FrameSpec(key=key))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int8, bool])
def test_pixels_that_are_not_uint8_are_refused(dtype: type) -> None:
    with pytest.raises(TypeError, match=r"uint8.*" + np.dtype(dtype).name):
        to_frames(np.zeros((8, 8, 3), dtype), FrameSpec())


@pytest.mark.parametrize("shape", [(), (3,), (12,)])
def test_vectors_are_refused_as_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected images"):
        to_frames(np.zeros(shape, np.uint8), FrameSpec())


def test_a_crop_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing of a 8x9 image"):
        to_frames(noise(8, 9, 3), FrameSpec(crop=(4, 4, 0, 0)))


@pytest.mark.parametrize("fields", [{"height": 0}, {"width": -1}, {"channels": 4}, {"crop": (0, -1, 0, 0)}])
def test_an_impossible_spec_is_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match="a frame needs"):
        FrameSpec(**fields)


def test_every_grey_level_survives_the_way_to_floats_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, 16, 16, 3).contiguous()
    unit = to_unit(levels)
    assert unit.shape == (2, 3, 16, 16)
    assert unit.dtype == torch.float32
    assert unit.min() == 0
    assert unit.max() == 1
    assert unit.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(to_uint8(unit), levels, rtol=0, atol=0)


@given(st.lists(st.floats(-2, 3, width=32), min_size=1, max_size=32))
def test_floats_are_clipped_and_rounded_to_the_nearest_level(values: list[float]) -> None:
    images = torch.tensor(values).reshape(1, 1, 1, -1)
    levels = to_uint8(images).flatten().numpy()
    exact = np.clip(np.array(values, np.float64), 0, 1) * 255
    assert np.abs(levels - exact).max() <= 0.5 + 1e-4
