"""A tokenizer that is read after the first texts: the same ids, and one reading however many ask."""

import dataclasses
import threading
from contextlib import ExitStack, closing

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from resilient_ai import errors
from resilient_ai._inference.excerpts import Excerpts, index_tokenizer
from resilient_ai._inference.tokens import TextEncoder
from resilient_ai._models.cards import ModelCard
from resilient_ai._models.installed import InstalledModel
from resilient_ai._serving import gradual
from resilient_ai._serving.encoders import make_gradual_encoder
from resilient_ai._serving.gradual import GradualEncoder, keep_index, read_index

CARD = ModelCard(
    name="embedder",
    kind="embedding",
    family="qwen3",
    dimension=4,
    pooling="last_token",
    query_prompt="Q:{text}",
    end_token="<|end|>",
)
LONG_PROMPT = dataclasses.replace(CARD, query_prompt="xyz " * 30 + "{text}")


def told():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["one text and another text, and one more text"] * 8, trainer)
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer.to_str()


TOLD = told()
EXCERPTS = Excerpts(index_tokenizer(TOLD.encode()))


def make(tokenizer, max_tokens=64):
    return TextEncoder(tokenizer, max_tokens=max_tokens, end_token="<|end|>")


def whole():
    return make(Tokenizer.from_str(TOLD))


class Reader:
    """Reads the whole, counts how often, and fails while it is told to."""

    def __init__(self, error=None):
        self.times = 0
        self.error = error
        self.done = threading.Event()

    def __call__(self):
        self.times += 1
        self.done.set()
        if self.error:
            raise self.error
        return whole()


def make_gradual(reader, *, pause=3600, make=make):
    return GradualEncoder(EXCERPTS, make, reader, pause=pause)


@pytest.fixture
def gradual_encoder():
    """Makes encoders that are closed after the test."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(closing(make_gradual(*args, **options)))


def same(one, other):
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.offsets, other.offsets)
    np.testing.assert_array_equal(one.truncated, other.truncated)


def test_first_texts_are_encoded_without_the_whole(gradual_encoder):
    """Short texts get the whole tokenizer's ids before it is read."""
    reader = Reader()
    encoder = gradual_encoder(reader)
    texts = ["one text", "and another <|end|>", "", "ünïcode \U0001f600"]
    same(encoder.encode(texts), whole().encode(texts))
    assert reader.times == 0
    assert encoder.control_tokens == whole().control_tokens


@pytest.mark.parametrize("use", ["long", "many", "pairs", "shared"])
def test_what_no_excerpt_will_do_for_reads_the_whole(use, gradual_encoder):
    """Long texts, many texts and pairs wait for the whole tokenizer, which is read once."""
    reader = Reader()
    encoder = gradual_encoder(reader)
    for _ in range(2):
        match use:
            case "long":
                same(encoder.encode(["text " * 200]), whole().encode(["text " * 200]))
            case "many":
                same(encoder.encode(["text"] * 300), whole().encode(["text"] * 300))
            case "pairs":
                same(encoder.encode_pairs([("a", "b")]), whole().encode_pairs([("a", "b")]))
            case "shared":
                assert encoder.encode_shared("a", ["b"]) is None
    assert reader.times == 1


def test_a_low_limit_reads_the_whole(gradual_encoder):
    """Where texts are cut before they are tokenised no excerpt is proved to do."""
    reader = Reader()
    encoder = gradual_encoder(reader, make=lambda tokenizer: make(tokenizer, max_tokens=8))
    encoder.encode(["one text"])
    assert reader.times == 1


def test_the_whole_is_read_soon_after_the_first_texts(gradual_encoder):
    """After the first texts the whole is read in the background, once, and serves from then on."""
    reader = Reader()
    encoder = gradual_encoder(reader, pause=0)
    assert not reader.done.wait(0)
    encoder.encode(["one text"])
    assert reader.done.wait(10)
    encoder.encode(["one text"])
    assert encoder.whole() is encoder.whole()
    assert reader.times == 1


def test_a_closed_encoder_is_not_read():
    """An encoder that is closed before the moment has passed lets go of its thread, and nothing is read."""
    reader = Reader()
    encoder = make_gradual(reader, pause=3600)
    encoder.encode(["one text"])
    (thread,) = [each for each in threading.enumerate() if each.name == "resilient-ai-read"]
    encoder.close()
    assert not thread.is_alive()
    same(encoder.encode(["one text"]), whole().encode(["one text"]))
    assert reader.times == 0


def test_an_error_of_reading_reaches_whoever_needs_the_whole(gradual_encoder):
    """A whole that cannot be read raises its own error, and is tried again by the next who needs it."""
    error = errors.ModelCorrupt("tokenizer.json is gone")
    reader = Reader(error)
    encoder = gradual_encoder(reader)
    for _ in range(2):
        with pytest.raises(errors.ModelCorrupt) as raised:
            encoder.encode(["text " * 200])
        assert raised.value is error
    reader.error = None
    assert len(encoder.encode(["text " * 200])) == 1


def test_invalid_unicode_is_refused_as_ever(gradual_encoder):
    """A lone surrogate is the caller's error, told by the whole tokenizer's encoder."""
    with pytest.raises(errors.InvalidInput, match="surrogate"):
        gradual_encoder(Reader()).encode(["a\ud800"])


@pytest.fixture
def tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(gradual, "_LARGE", 0)
    path = tmp_path / "tokenizer.json"
    path.write_text(TOLD, encoding="utf-8")
    return path


def test_index_is_kept(tokenizer, tmp_path):
    """What was kept is read by the next start."""
    place = tmp_path / "derived" / "x.excerpts"
    assert read_index(tokenizer, place) is None
    keep_index(tokenizer, place)
    assert read_index(tokenizer, place) is not None


def test_damaged_index_is_made_anew(tokenizer, tmp_path):
    """A damaged index counts as none, and the next keeping replaces it."""
    place = tmp_path / "x.excerpts"
    place.write_bytes(b"rubbish")
    assert read_index(tokenizer, place) is None
    keep_index(tokenizer, place)
    assert read_index(tokenizer, place) is not None


def test_a_tokenizer_that_cannot_be_cut_is_looked_at_once(tokenizer, tmp_path):
    """An empty file says that there is no index to be had, and is left alone."""
    place = tmp_path / "x.excerpts"
    tokenizer.write_text(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str(), encoding="utf-8")
    keep_index(tokenizer, place)
    assert place.read_bytes() == b""
    stamp = place.stat().st_mtime_ns
    keep_index(tokenizer, place)
    assert (read_index(tokenizer, place), place.stat().st_mtime_ns) == (None, stamp)


def test_small_tokenizers_need_none(tmp_path):
    """A tokenizer that is read in no time has no index."""
    path, place = tmp_path / "tokenizer.json", tmp_path / "x.excerpts"
    path.write_text(TOLD, encoding="utf-8")
    keep_index(path, place)
    assert not place.exists()


def test_a_folder_that_cannot_be_written_is_no_error(tokenizer, tmp_path):
    """Without a place for the index the whole is read at every start, and nothing fails."""
    (tmp_path / "file").write_text("")
    keep_index(tokenizer, tmp_path / "file" / "x.excerpts")
    assert read_index(tokenizer, tmp_path / "file" / "x.excerpts") is None


def test_no_index_is_made_that_cannot_be_kept(tokenizer, tmp_path, monkeypatch):
    """In a folder that cannot be written an index would be made anew, in vain, at every start."""
    monkeypatch.setattr(gradual, "index_tokenizer", lambda _: pytest.fail("an index was made"))
    monkeypatch.setattr(gradual.os, "access", lambda *_: False)
    keep_index(tokenizer, tmp_path / "x.excerpts")
    assert not (tmp_path / "x.excerpts").exists()


def test_a_second_start_reads_the_tokenizer_later(tmp_path, monkeypatch):
    """From the second start on a large tokenizer is read gradually, with the ids of the first start."""
    monkeypatch.setattr(gradual, "_LARGE", 0)
    path = tmp_path / "tokenizer.json"
    path.write_text(TOLD, encoding="utf-8")
    files, hashes = {"tokenizer": (path,)}, {"tokenizer.json": "0" * 64}
    installed = InstalledModel(CARD, tmp_path, "graph", files, hashes, "here", None, tmp_path / "derived")
    first, second = (make_gradual_encoder(installed, 64) for _ in range(2))
    with closing(second):
        assert (type(first), type(second)) == (TextEncoder, GradualEncoder)
        same(second.encode(["one text"]), first.encode(["one text"]))
        assert second.control_tokens == first.control_tokens


def test_a_gradual_encoder_fits_its_card_as_well(tmp_path, monkeypatch):
    """What the card asks for in vain is told at every start, and no thread stays behind."""
    monkeypatch.setattr(gradual, "_LARGE", 0)
    path = tmp_path / "tokenizer.json"
    path.write_text(TOLD, encoding="utf-8")
    files, hashes = {"tokenizer": (path,)}, {"tokenizer.json": "0" * 64}
    installed = InstalledModel(CARD, tmp_path, "graph", files, hashes, "here", None, tmp_path)
    keep_index(path, tmp_path / f"tokenizer-{'0' * 12}.excerpts")
    wrong = dataclasses.replace(installed, card=dataclasses.replace(CARD, query_prompt="<|end|>{text}"))
    with pytest.raises(errors.ConfigurationError, match="in a prompt is text"):
        make_gradual_encoder(wrong, 64)
    with pytest.raises(errors.ConfigurationError, match="no room"):
        make_gradual_encoder(dataclasses.replace(installed, card=LONG_PROMPT), 40)
