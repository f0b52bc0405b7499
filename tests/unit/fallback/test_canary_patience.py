"""How long a device may take over a canary: learned from its proofs, and never too short for ever."""

import pytest

from resilient_ai._serving.patience import CanaryPatience
from resilient_ai._serving.policy import FallbackPolicy

POLICY = FallbackPolicy(gpu_timeout=30.0, hang_factor=10.0, hang_floor=1.0)


@pytest.fixture
def patience():
    return CanaryPatience(POLICY)


def test_a_first_run_may_take_as_long_as_any_batch(patience):
    """Until a device has passed once, only `gpu_timeout` says that it hangs."""
    patience.hung("gpu")
    assert patience.of("gpu", 0) == 30.0


@pytest.mark.parametrize(("took", "limit"), [(0.01, 1.0), (0.4, 4.0), (8.0, 30.0)])
def test_the_limit_follows_from_what_a_proof_took(patience, took, limit):
    """Ten times the usual, and never outside the floor and `gpu_timeout`."""
    patience.passed("gpu", [took])
    assert patience.of("gpu", 0) == pytest.approx(limit)


def test_the_slowest_proof_counts(patience):
    """A quick proof does not shorten the limit that a slow one asked for."""
    patience.passed("gpu", [0.4])
    patience.passed("gpu", [0.01])
    assert patience.of("gpu", 0) == pytest.approx(4.0)


def test_canaries_and_devices_have_limits_of_their_own(patience):
    """The large canary takes longer than the small one, and another device may be slower."""
    patience.passed("gpu:0", [0.2, 0.4])
    patience.passed("gpu:1", [0.3, 0.5])
    assert [patience.of("gpu:0", n) for n in (0, 1)] == pytest.approx([2.0, 4.0])
    assert [patience.of("gpu:1", n) for n in (0, 1)] == pytest.approx([3.0, 5.0])


def test_a_limit_that_was_too_short_grows_until_it_is_none(patience):
    """Each hang doubles the limit up to `gpu_timeout`, so a slower machine is not kept away; passing ends it."""
    patience.passed("gpu", [0.2])
    limits = []
    for _ in range(100):
        limits.append(patience.of("gpu", 0))
        patience.hung("gpu")
    assert limits[:6] == pytest.approx([2, 4, 8, 16, 30, 30])
    assert limits[-1] == 30.0
    patience.passed("gpu", [0.2])
    assert patience.of("gpu", 0) == pytest.approx(2.0)
