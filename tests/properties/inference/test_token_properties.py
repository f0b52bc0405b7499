"""The encoder cuts exactly where the `tokenizers` package would, and reads no more than it must."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resilient_ai._inference.tokens import TextEncoder, _cut_longest_first
from tokenizer_kit import NAMES, encoders_tokenizer, reference_tokenizer

pytestmark = pytest.mark.slow

WORD = st.one_of(
    st.sampled_from(
        ["the", "sun", "is", "warm", "rains", "abcdab", "zebra", "don't", "Straße", "日本語", "x" * 30]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
TEXT = st.lists(WORD, max_size=40).map(" ".join)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", NAMES)
@QUICK
@given(texts=st.lists(TEXT, min_size=1, max_size=4), limit=st.integers(6, 40))
def test_single_texts_equal_the_packages_truncation(name, texts, limit):
    """Ids and flags are those of `enable_truncation` for the same limit."""
    reference = reference_tokenizer(name)
    tokens = TextEncoder(encoders_tokenizer(name), max_tokens=limit).encode(texts)
    for index, text in enumerate(texts):
        reference.no_truncation()
        whole = reference.encode(text).ids
        reference.enable_truncation(limit)
        assert tokens.row(index).tolist() == reference.encode(text).ids
        assert bool(tokens.truncated[index]) == (len(whole) > limit)


@pytest.mark.parametrize("name", NAMES)
@QUICK
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), limit=st.integers(6, 40))
def test_pairs_equal_the_packages_longest_first(name, pairs, limit):
    """Ids, types and flags of pairs are those of `enable_truncation(strategy="longest_first")`."""
    reference = reference_tokenizer(name)
    tokens = TextEncoder(encoders_tokenizer(name), max_tokens=limit, with_types=True).encode_pairs(pairs)
    for index, (query, document) in enumerate(pairs):
        reference.no_truncation()
        whole = reference.encode(query, document).ids
        reference.enable_truncation(limit, strategy="longest_first")
        expected = reference.encode(query, document)
        start, end = tokens.offsets[index], tokens.offsets[index + 1]
        assert tokens.ids[start:end].tolist() == expected.ids
        assert tokens.type_ids[start:end].tolist() == expected.type_ids
        assert bool(tokens.truncated[index]) == (len(whole) > limit)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(words=st.lists(WORD, min_size=1, max_size=30), times=st.integers(20, 300), limit=st.integers(6, 20))
def test_reading_only_the_first_part_changes_nothing(name, words, times, limit):
    """A long text with spaces gets the tokens of the whole text, cut."""
    text = " ".join(words * times)
    reference = reference_tokenizer(name)
    reference.enable_truncation(limit)
    tokens = TextEncoder(encoders_tokenizer(name), max_tokens=limit).encode([text])
    assert tokens.ids.tolist() == reference.encode(text).ids


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 200))
def test_the_cut_uses_all_room_and_no_more(first, second, room):
    """Nothing is cut that fits, all room is used when something is, and the longer text is cut first."""
    kept = _cut_longest_first(first, second, room)
    assert kept[0] <= first
    assert kept[1] <= second
    assert sum(kept) == min(first + second, room)
    if kept != (first, second):
        longer = max(first, second)
        assert kept[0 if first == longer else 1] < longer or first == second
