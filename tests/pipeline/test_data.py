from __future__ import annotations

import pytest

pytest.importorskip("sklearn", reason="needs the extra demo")

import numpy as np

from stagesink.pipeline import data


def test_every_digit_is_in_exactly_one_part() -> None:
    digits = data.load()
    assert [len(part.images) for part in digits] == [1077, 360, 360]
    assert [len(part.labels) for part in digits] == [1077, 360, 360]


def test_each_part_has_all_ten_digits() -> None:
    for part in data.load():
        assert set(part.labels.tolist()) == set(range(10))


def test_the_split_is_the_same_each_time() -> None:
    for once, again in zip(data.load(), data.load(), strict=True):
        assert np.array_equal(once.images, again.images)
        assert np.array_equal(once.labels, again.labels)


def test_pixels_are_float32_and_lose_nothing_by_it() -> None:
    images = data.load().held_back.images
    assert images.dtype == np.float32
    assert np.array_equal(images * 16, np.round(images * 16))
