"""Which models leave memory: properties of the rule, whatever is there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from resilient_ai._models.cards import ModelCard
from resilient_ai._models.keeping import KeepRules, LoadedModel, Origin

CARD = ModelCard(name="m", kind="reranker", family="bert", score="sigmoid")


@st.composite
def residents(draw):
    count = draw(st.integers(0, 8))
    times = draw(st.lists(st.floats(0, 1e6), min_size=count, max_size=count, unique=True))
    return [
        LoadedModel(
            f"m{number}",
            0.0,
            0.0,
            time,
            draw(st.integers(0, 2)),
            Origin(CARD, "", None, draw(st.integers(0, 1000))),
        )
        for number, time in enumerate(times)
    ]


RULES = st.builds(KeepRules, models=st.integers(0, 5), nbytes=st.integers(0, 4000))


def size(models):
    return sum(model.origin.nbytes for model in models)


@given(RULES, residents(), st.integers(0, 2000))
def test_what_leaves_is_idle_and_oldest(rules, present, coming):
    """Nothing in use leaves, and of those that are idle nothing leaves that was used after one that stays."""
    leaving = rules.leaving(present, coming=coming)
    assert all(model.users == 0 for model in leaving)
    staying = [model.last_used for model in present if model not in leaving and model.users == 0]
    left = [model.last_used for model in leaving]
    assert left == sorted(left)
    assert max(left, default=-1.0) < min(staying, default=float("inf"))


@given(RULES, residents(), st.integers(0, 2000))
def test_enough_leaves(rules, present, coming):
    """What stays keeps the rules, unless all that stays is in use."""
    leaving = rules.leaving(present, coming=coming)
    staying = [model for model in present if model not in leaving]
    if all(model.users for model in staying):
        return
    assert not rules.models or len(staying) <= rules.models
    assert (
        not rules.nbytes
        or size(present) + coming <= rules.nbytes
        or size(staying) + coming <= 0.8 * rules.nbytes
    )


@given(RULES, residents(), st.integers(0, 2000))
def test_no_more_than_must_leaves(rules, present, coming):
    """Each that leaves had to: with it and what left before it, a limit would still be passed."""
    leaving = rules.leaving(present, coming=coming)
    over = 0 < rules.nbytes < size(present) + coming
    for place in range(len(leaving)):
        staying = [model for model in present if model not in leaving[:place]]
        too_many = 0 < rules.models < len(staying)
        assert too_many or (over and size(staying) + coming > 0.8 * rules.nbytes)


@given(residents())
def test_without_limits_nothing_leaves(present):
    """Where nothing is limited, nothing leaves."""
    assert KeepRules().leaving(present, coming=10**12) == []
