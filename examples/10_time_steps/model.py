"""A model that takes 15 ms but no CPU core, like one on a GPU: a rod that radiates."""

import time

import numpy as np


def cooling(T: np.ndarray) -> np.ndarray:
    time.sleep(0.015)
    return -2e-9 * ((T * T) * (T * T) - 300.0**4)
