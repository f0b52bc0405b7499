"""The pure parts of the benchmarks of speed: what is promised, what is counted, what is written."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

# Last, so that nothing of the benchmarks stands before a module of the same name.
sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

from harness import Timing
from speed.contestants import Unavailable
from speed.corpus import mixed_passages
from speed.flops import MINILM, QWEN3_06B
from speed.guests import Guest, GuestFailed, Invitation, invited
from speed.measures import agreement, overlap, spread_of_ratio
from speed.profile import summarise
from speed.report import render
from speed.sections import FULL
from speed.targets import TARGETS, Figure, Target, judge

FAST_ENOUGH = Target("minilm", "fp32/torch", "fp32 against torch", 2.7, least=True)
SMALL_ENOUGH = Target("minilm", "rss", "memory", 0.3, least=False)


@pytest.mark.parametrize(
    ("target", "figure", "outcome"),
    [
        (FAST_ENOUGH, Figure(2.7), "kept"),
        (FAST_ENOUGH, Figure(2.69), "missed"),
        (FAST_ENOUGH, Figure(float("nan")), "missed"),
        (SMALL_ENOUGH, Figure(0.3), "kept"),
        (SMALL_ENOUGH, Figure(0.31), "missed"),
        (FAST_ENOUGH, Figure(9.0, wrong="cosine 0.5"), "missed"),
        (FAST_ENOUGH, Figure(None, note="no such engine"), "not available here"),
        (FAST_ENOUGH, None, "not measured"),
    ],
)
def test_a_target_is_kept_by_a_right_answer_on_its_good_side(target, figure, outcome):
    """A bound holds from its good side, a wrong answer keeps none, and what is absent is not judged."""
    figures = {} if figure is None else {target.figure: figure}
    (row,) = judge(figures, "minilm", [target])
    assert row.outcome == outcome
    assert row.kept is {"kept": True, "missed": False}.get(outcome)


def test_targets_belong_to_sections_and_are_told_apart():
    """Every target has a section that measures it, and no two of a section are the same figure."""
    assert {target.section for target in TARGETS} == set(FULL)
    assert len({(target.section, target.figure) for target in TARGETS}) == len(TARGETS)
    assert len({(target.section, target.what) for target in TARGETS}) == len(TARGETS)


def test_the_corpus_is_the_same_for_the_same_seed():
    """A seed decides the texts and their order; none occurs twice."""
    texts = mixed_passages(20, seed=7)
    assert texts == mixed_passages(20, seed=7) != mixed_passages(20, seed=8)
    assert len(set(texts)) == 20
    assert mixed_passages(20, seed=7, most=30) == [text[:30] for text in texts]


def test_operations_grow_with_tokens_and_with_their_pairs():
    """A matrix costs two operations a weight and token; attention all pairs, or half of them."""
    assert MINILM.per_token == 2 * 6 * (4 * 384**2 + 2 * 384 * 1536)
    assert MINILM.flop([10]) == 10 * MINILM.per_token + 4 * 6 * 384 * 100
    assert QWEN3_06B.flop([10]) == 10 * QWEN3_06B.per_token + 2 * 28 * 2048 * 100


def test_what_is_read_once_is_counted_once():
    """For a causal model, a beginning and what follows it cost together what the whole text costs."""
    whole = QWEN3_06B.flop([88 + 111])
    assert QWEN3_06B.flop([88]) + QWEN3_06B.flop([111], before=88) == pytest.approx(whole)


def test_agreement_is_that_of_the_worst_text():
    """The least cosine counts, whatever the lengths; numbers that are none agree with nothing."""
    vectors = np.eye(12, dtype=np.float32)
    turned = vectors.copy()
    turned[3] = [0.6, 0, 0, 0.8, *[0] * 8]
    assert agreement(5 * vectors, vectors) == pytest.approx(1)
    assert agreement(turned, vectors) == pytest.approx(0.8)
    assert agreement(np.full_like(vectors, np.nan), vectors) == -1


def test_overlap_counts_the_same_neighbours():
    """Equal vectors have all neighbours in common, reversed ones not."""
    points = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    assert overlap(points, points) == 1
    assert overlap(points, np.random.default_rng(1).standard_normal((40, 8)).astype(np.float32)) < 0.6


def test_a_profile_is_summed_by_operation():
    """Kernels of one operation count together, the longest first, with what they multiply."""
    product = {
        "op_name": "MatMul",
        "input_type_shape": [{"float": [2, 5, 3]}, {"float": [3, 4]}],
        "output_type_shape": [{"float": [2, 5, 4]}],
    }
    events = [
        {"cat": "Node", "name": "a_kernel_time", "dur": 10, "args": product},
        {"cat": "Node", "name": "b_kernel_time", "dur": 30, "args": product},
        {"cat": "Node", "name": "a_fence_before", "dur": 99, "args": product},
        {"cat": "Session", "name": "model_run", "dur": 99},
        {"cat": "Node", "name": "c_kernel_time", "dur": 50, "args": {"op_name": "Gelu"}},
    ]
    longest, other = summarise(events)
    assert (longest.operation, longest.runs, longest.gflops) == ("Gelu", 1, None)
    assert (other.operation, other.runs, other.seconds) == ("MatMul", 2, pytest.approx(40e-6))
    assert other.flop == 2 * (2 * 2 * 5 * 3 * 4)


def test_the_page_has_every_target_and_every_table():
    """Sections that were not run are told as such; those that were show machine, figures and verdicts."""
    target = TARGETS[0]
    versions = {"record": "versions", "benchmark": "x", "torch": "9.9"}
    machine = {"record": "machine", "cpu": "A CPU", "cores": 2, "memory_gb": 4, "system": "S", "python": "3"}
    told = {"section": target.section, "what": target.what, "bound": target.bound, "found": "1 x"}
    records = [
        machine,
        versions,
        {"record": "figures", "table": "Speeds", "contestant": "a|b", "texts/s": 1234.5, "cosine min": None},
        {"record": "target", **told, "outcome": "missed", "remark": "too slow"},
        {"record": "absent", "name": "somebody", "why": "not installed"},
        {"record": "end", "scale": 0.5},
    ]
    page = render({"minilm": records}, {"Speeds": "plots/speeds.svg"})
    assert "A CPU, 2 cores" in page
    assert f"| {target.what} | 1 x | {target.bound} | **missed** | too slow |" in page
    assert "| a\\|b | 1,234 | - |" in page
    assert "![Speeds](plots/speeds.svg)" in page
    assert "somebody: not available here: not installed" in page
    assert "figures mean nothing: minilm." in page
    assert page.count("| not measured |") == len(TARGETS) - 1


def test_spread_is_that_of_the_ratios():
    """A slow round that falls on both is no spread of their ratio."""
    one, other = Timing("one", (2.0, 4.0, 6.0)), Timing("other", (1.0, 2.0, 3.0))
    assert spread_of_ratio(one, other) == 0


class Sleeper:
    """A contestant that this module brings along."""

    def __init__(self, *, why: str = "") -> None:
        if why:
            raise Unavailable(why)

    def embed(self, texts):
        time.sleep(0.01)
        return [len(text) for text in texts]


@pytest.mark.slow
def test_guests_answer_time_and_stay_away(tmp_path, monkeypatch):
    """A guest works in its own process; who cannot come is told of, who breaks says how."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    place = "test_speed:Sleeper"
    told = []
    with invited(
        [Invitation("here", place), Invitation("away", place, {"why": "it rains"})],
        lambda name, why: told.append((name, why)),
    ) as guests:
        assert list(guests) == ["here"]
        guest: Guest = guests["here"]
        guest.hold(texts=["a", "bcd"])
        assert guest.answer("embed", "texts") == [1, 3]
        assert all(seconds >= 0.01 for seconds in guest.each("embed", "texts", start=0, count=3))
        assert guest.memory()["rss"] > 1
        with pytest.raises(GuestFailed, match="KeyError"):
            guest.run("embed", "nothing")
    assert told == [("away", "it rains")]
