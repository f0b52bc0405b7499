"""What was learned of a card's memory outlives the program, and never gets in its way."""

import json
import logging
import threading

import pytest
from fallback_kit import in_threads

from resilient_ai._serving.hints import Hints
from resilient_ai.testing import FakeClock

CARD = {"device": "gpu:0", "card": "Some Card 80GB", "most": 16_384}


@pytest.fixture
def graph(tmp_path):
    return tmp_path / "model.onnx"


def files(folder):
    return sorted(folder.glob("*.json"))


def tokens_in(folder):
    (file,) = files(folder)
    return json.loads(file.read_text())["tokens"]


def test_the_next_run_begins_where_the_last_one_was(tmp_path, graph):
    """A ceiling that was halved is there again after a restart, and grows again from there."""
    before = Hints(tmp_path / "hints").ceiling(graph=graph, **CARD)
    assert before.tokens == 16_384
    before.lower(16_384)
    after = Hints(tmp_path / "hints").ceiling(graph=graph, **CARD)
    assert after.tokens == 8_192
    after.fitted(8_000)
    assert after.tokens > 8_192


@pytest.mark.parametrize("other", [{"device": "gpu:1"}, {"card": "Another Card"}, {"graph": "other.onnx"}])
def test_another_device_card_or_graph_has_a_hint_of_its_own(tmp_path, graph, other):
    """What one card or graph was found to take says nothing about another."""
    hints = Hints(tmp_path)
    hints.ceiling(graph=graph, **CARD).lower(16_384)
    asked = {**CARD, "graph": graph, **other}
    other_ceiling = hints.ceiling(**asked)
    assert other_ceiling.tokens == 16_384
    other_ceiling.lower(100)
    assert hints.ceiling(graph=graph, **CARD).tokens == 8_192
    assert len(files(tmp_path)) == 2


def test_a_smaller_budget_than_the_hint_counts(tmp_path, graph):
    """The user's present budget is never exceeded by what an earlier one allowed."""
    Hints(tmp_path).ceiling(graph=graph, **CARD).lower(16_384)
    assert Hints(tmp_path).ceiling(graph=graph, **{**CARD, "most": 1_000}).tokens == 1_000


def wrong_contents(good):
    yield "empty", b""
    yield "cut short", json.dumps(good).encode()[:-5]
    yield "not text", b"\xff\xfe\x00"
    yield "a list", b"[]"
    yield "deep", b"[" * 15_000
    for name, value in (
        ("version", 2),
        ("device", "gpu:9"),
        ("card", None),
        ("tokens", 0),
        ("tokens", -5),
        ("tokens", True),
        ("tokens", 1.5),
        ("tokens", "8192"),
        ("tokens", None),
    ):
        yield f"{name}={value!r}", json.dumps({**good, name: value}).encode()
    yield "no tokens", json.dumps({key: value for key, value in good.items() if key != "tokens"}).encode()
    yield "too large", json.dumps({**good, "more": "x" * 100_000}).encode()


def test_a_damaged_hint_is_not_used_and_is_written_anew(tmp_path, graph):
    """Whatever stands in the file, the ceiling begins at its budget, and the next lesson replaces it."""
    Hints(tmp_path).ceiling(graph=graph, **CARD).lower(16_384)
    (file,) = files(tmp_path)
    good = json.loads(file.read_text())
    for what, content in wrong_contents(good):
        file.write_bytes(content)
        ceiling = Hints(tmp_path).ceiling(graph=graph, **CARD)
        assert ceiling.tokens == 16_384, what
        ceiling.lower(10_000)
        assert tokens_in(tmp_path) == 5_000, what


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, graph, caplog):
    """Where nothing can be kept the ceiling works all the same, and one line says why."""
    (tmp_path / "file").write_text("")
    ceiling = Hints(tmp_path / "file" / "hints").ceiling(graph=graph, **CARD)
    with caplog.at_level(logging.INFO, "resilient_ai"):
        assert [ceiling.lower(size) for size in (16_384, 8_192, 4_096)] == [8_192, 4_096, 2_048]
    assert [record.fields["device"] for record in caplog.records] == ["gpu:0"]


def test_growth_is_written_once_an_hour(tmp_path, graph):
    """A fall is written at once; what only grew waits for an hour to pass since the last write."""
    clock = FakeClock()
    ceiling = Hints(tmp_path, clock=clock).ceiling(graph=graph, **CARD)
    ceiling.lower(16_384)
    clock.tick(3599)
    for _ in range(3):
        ceiling.fitted(int(ceiling.tokens))
    assert tokens_in(tmp_path) == 8_192 < int(ceiling.tokens)
    clock.tick(1)
    ceiling.fitted(int(ceiling.tokens))
    grown = int(ceiling.tokens)
    assert tokens_in(tmp_path) == grown
    ceiling.fitted(int(ceiling.tokens))
    assert tokens_in(tmp_path) == grown
    ceiling.lower(1_000)
    assert tokens_in(tmp_path) == 500


def test_a_fall_to_what_is_known_is_not_written(tmp_path, graph):
    """Halving again down to the value that stands in the file costs no write."""
    ceiling = Hints(tmp_path).ceiling(graph=graph, **CARD)
    ceiling.lower(16_384)
    (file,) = files(tmp_path)
    ceiling.fitted(8_192)
    file.write_text("untouched")
    ceiling.lower(16_384)
    assert file.read_text() == "untouched"
    assert ceiling.tokens == 8_192


def test_two_programs_may_share_a_folder(tmp_path, graph):
    """While several write, a reader finds a whole hint of one of them, and no rest is left behind."""
    ceilings = [Hints(tmp_path).ceiling(graph=graph, **CARD) for _ in range(4)]
    stop = threading.Event()
    seen = []

    def look(index):
        if index == 0:
            try:
                for size in range(16_384, 16_000, -1):
                    ceilings[size % 4].lower(size)
            finally:
                stop.set()
            return
        seen.append(Hints(tmp_path).ceiling(graph=graph, **CARD).tokens)
        while not stop.is_set():
            seen.append(Hints(tmp_path).ceiling(graph=graph, **CARD).tokens)

    assert in_threads(3, look) == [None] * 3
    assert seen
    assert all(8_000 <= tokens <= 16_384 for tokens in seen)
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_threads_that_find_out_at_once_leave_one_hint(tmp_path, graph, caplog):
    """Many threads that halve one ceiling write one whole file, and none of them complains."""
    ceiling = Hints(tmp_path).ceiling(graph=graph, **CARD)
    with caplog.at_level(logging.INFO, "resilient_ai"):
        in_threads(16, lambda index: [ceiling.lower(16_000 - 16 * step - index) for step in range(50)])
    assert tokens_in(tmp_path) == ceiling.tokens == (16_000 - 16 * 49 - 15) // 2
    assert caplog.records == []
