"""The digits that scikit-learn ships, in three parts that never mix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 7


class Part(NamedTuple):
    """Images as rows of 64 float32 pixels from 0 to 1, and the digit on each."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


class Digits(NamedTuple):
    """What is trained on, what settings are chosen by, and what no stage sees before the benchmark."""

    train: Part
    validation: Part
    held_back: Part


def load() -> Digits:
    """Split the 1,797 digits 60 : 20 : 20, the same way each time."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)  # sixteen grey levels: exact in float32, so ONNX sees the same numbers
    labels = labels.astype(np.int64)
    images, held_images, labels, held_labels = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=SEED
    )
    images, check_images, labels, check_labels = train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=SEED
    )
    return Digits(Part(images, labels), Part(check_images, check_labels), Part(held_images, held_labels))
