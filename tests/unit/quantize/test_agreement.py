"""What is measured of two graphs, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from quantize_kit import write_mlp

from resilient_ai._models.quantize.agreement import measure, overlap, rank_correlation
from resilient_ai._models.quantize.report import QuantizationReport
from resilient_ai.errors import ConfigurationError, InvalidInput
from resilient_ai.values import Tokens, Vectors

GOOD = QuantizationReport(
    task="embed",
    texts=100,
    cosine_min=0.995,
    cosine_p1=0.996,
    cosine_mean=0.999,
    overlap=0.98,
    rank_correlation=None,
    score_difference=None,
    worst_text=17,
    batch_difference=1e-8,
    reference_bytes=400,
    candidate_bytes=100,
    speedup=2.0,
)


class Backend:
    """Vectors that are told by the ids: `tilt` turns them, `leak` adds what the neighbours hold."""

    device = "cpu"

    def __init__(self, tilt=0.0, leak=0.0):
        self.tilt, self.leak = tilt, leak

    def run(self, batch):
        first = batch.input_ids[:, 0].astype(np.float32)
        rows = np.stack([np.cos(first), np.sin(first), np.full_like(first, self.tilt)], axis=1)
        rows += np.float32(self.leak) * len(rows)
        return Vectors(rows.astype(np.float32), "cpu")

    def close(self):
        """Nothing is held."""


def tokens(count=60):
    lengths = np.arange(count) % 7 + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens(np.arange(offsets[-1]) % 97, offsets, np.zeros(count, bool))


@pytest.fixture
def compare(tmp_path):
    """Measures one backend beside the exact one."""
    graph = write_mlp(tmp_path / "mlp.onnx")

    def run(candidate, **options):
        return measure(graph, graph, reference=Backend(), candidate=candidate, tokens=tokens(), **options)

    return run


def test_the_same_answers(compare):
    """Answers that are equal agree in full."""
    found = compare(Backend())
    assert (found.cosine_min, found.overlap, found.batch_difference) == (1.0, 1.0, 0.0)
    assert found.passed


def test_answers_that_are_turned(compare):
    """The least cosine is the one that simple geometry gives, and below the limit it is refused."""
    found = compare(Backend(tilt=0.2))
    assert found.cosine_min == pytest.approx(1 / np.hypot(1, 0.2), abs=1e-6)
    assert not found.passed
    assert compare(Backend(tilt=0.2), limit=0.9).passed


def test_answers_that_move_with_their_batch(compare):
    """A graph whose answers depend on their neighbours is found out, however close they are."""
    found = compare(Backend(leak=1e-3))
    assert found.cosine_min > 0.99
    assert found.batch_difference == pytest.approx(4e-3, rel=0.1)
    with pytest.raises(ConfigurationError, match="with its batch"):
        found.require()


@pytest.mark.parametrize("figure", [0.98, float("nan")])
def test_a_report_below_the_limit(figure):
    """Too low an agreement, or none at all, is refused with the worst text; force lets it pass."""
    report = replace(GOOD, cosine_min=figure)
    with pytest.raises(ConfigurationError, match=r"worst: text 17.*precise"):
        report.require()
    report.require(force=True)
    assert "REFUSED" in str(report)
    assert report.to_dict()["passed"] is False
    GOOD.require()
    assert str(GOOD).endswith("passed")


def test_orders():
    """Rank correlation is Spearman's; equal scores share a place, and no order at all agrees with itself."""
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 30, 99])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])) == pytest.approx(-1)
    assert rank_correlation(np.array([1.0, 2, 2, 3]), np.array([1.0, 3, 2, 4])) == pytest.approx(0.9486833)
    assert rank_correlation(np.ones(3), np.ones(3)) == 1
    assert rank_correlation(np.ones(3), np.arange(3.0)) == 0


def test_neighbours():
    """The overlap is the share of the ten nearest that two sets of vectors have in common."""
    around = np.linspace(0, np.pi, 40)
    circle = np.stack([np.cos(around), np.sin(around)], axis=1)
    assert overlap(circle, 3 * circle) == 1
    assert overlap(circle, circle[np.random.default_rng(0).permutation(40)]) < 0.5
    assert overlap(circle[:1], -circle[:1]) == 1


def test_what_cannot_be_measured(compare):
    """A task without a measure and groups that do not fit are refused."""
    for options in ({"task": "sparse"}, {"groups": [3]}, {"task": "score", "groups": [1] * 60}):
        with pytest.raises(InvalidInput):
            compare(Backend(), **options)
