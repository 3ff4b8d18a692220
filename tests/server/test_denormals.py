import numpy as np
import pytest

from heed.server.engine.session import _libm, denormals_as_zero

TINY_4 = np.full(4, 1e-40, np.float32)


def product() -> float:
    return float((TINY_4 * np.float32(1.0)).max())


@pytest.mark.skipif(_libm is None, reason="only x86-64 with glibc takes denormals as zero")
def test_tiny_numbers_are_zero_inside_and_only_there() -> None:
    assert product() > 0
    with denormals_as_zero():
        assert product() == 0
    assert product() > 0


@pytest.mark.skipif(_libm is None, reason="only x86-64 with glibc takes denormals as zero")
def test_an_error_inside_leaves_nothing_behind() -> None:
    with pytest.raises(ZeroDivisionError), denormals_as_zero():
        raise ZeroDivisionError
    assert product() > 0


def test_normal_numbers_stay_as_they_are() -> None:
    values = np.array([1.5, -2.25, 1.2e-38, 3e38], np.float32)
    with denormals_as_zero():
        assert np.array_equal(values * np.float32(1.0), values)
