"""Where the vectors are, and helpers that every test may use."""

import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def bits(a):
    """The bits of floats, NaNs made canonical, as the contract compares them."""
    a = np.ascontiguousarray(a)
    unsigned = a.view({2: np.uint16, 4: np.uint32}[a.dtype.itemsize])
    canonical = np.array(np.nan, a.dtype).view(unsigned.dtype)
    return np.where(np.isnan(a.astype(np.float32)), canonical, unsigned)
