"""Downloading from a server that truncates, stalls, refuses, lies and changes its mind."""

from __future__ import annotations

import itertools
import random
import shutil

import pytest
from file_server import Fault
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resilient_ai._models import download, landing
from resilient_ai._models.download import Downloader, Remote, SourceFailed, sidecar_of
from resilient_ai.errors import ConfigurationError

pytestmark = pytest.mark.slow

CONTENT = random.Random(7).randbytes(300_000)


@pytest.fixture
def naps():
    return []


@pytest.fixture
def fetch(server, tmp_path, naps):
    """Download `f` from the server into `part`, without waiting between tries."""
    server.files["f"] = CONTENT
    part = tmp_path / "part"

    def run(report=lambda done, total: None, stall_timeout=5.0, attempts=3, **known):
        downloader = Downloader(attempts=attempts, stall_timeout=stall_timeout, sleep=naps.append, seed=1)
        downloader.download(Remote(f"{server.url}/f", **known), part, report)
        return part.read_bytes()

    run.part = part
    return run


def test_whole_file_in_one_go(fetch, server):
    """A file that nothing disturbs takes one request and reports from nothing to all."""
    seen = []
    assert fetch(lambda done, total: seen.append((done, total))) == CONTENT
    assert [seen[0], seen[-1]] == [(0, len(CONTENT)), (len(CONTENT), len(CONTENT))]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert server.asked_ranges() == [None]


def test_cut_file_is_resumed(fetch, server):
    """What arrived before a cut is not asked for again."""
    server.fail("f", Fault(cut=200_000), Fault(cut=50_000))
    assert fetch() == CONTENT
    first, second, third = server.asked_ranges()
    assert first is None
    assert 0 < int(second[6:-1]) < int(third[6:-1]) < len(CONTENT)


def test_partial_file_survives_giving_up_and_is_resumed_later(fetch, server):
    """After giving up, the part stays, and the next call goes on from there."""
    server.fail("f", Fault(cut=150_000), Fault(status=503), Fault(status=503), Fault(status=503))
    with pytest.raises(SourceFailed, match="brought nothing"):
        fetch()
    kept = fetch.part.stat().st_size
    assert 0 < kept <= 150_000
    assert fetch() == CONTENT
    assert server.asked_ranges()[-1] == f"bytes={kept}-"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_trouble_is_retried(fetch, server, naps, status):
    """A status that may pass is tried again after a pause."""
    server.fail("f", Fault(status=status))
    assert fetch() == CONTENT
    assert len(naps) == 1
    assert 0.25 <= naps[0] <= 0.5


def test_retry_after_is_honoured(fetch, server, naps):
    """A server that asks for a longer pause gets it, within reason."""
    server.fail("f", *(Fault(status=429, headers=(("Retry-After", wait),)) for wait in ("7", "86400")))
    assert fetch() == CONTENT
    assert naps == [7.0, 60.0]


def test_pauses_grow(fetch, server, naps):
    """Each fruitless try doubles the pause, give or take the jitter."""
    server.fail("f", *(Fault(status=503) for _ in range(4)))
    assert fetch(attempts=5) == CONTENT
    assert all(low <= nap <= 2 * low for nap, low in zip(naps, (0.25, 0.5, 1.0, 2.0), strict=True))


def test_headway_pays_for_more_tries(fetch, server):
    """A connection cut over and over is put up with as long as every try brings something."""
    server.always["f"] = Fault(cut=20_000)
    assert fetch(attempts=2) == CONTENT
    assert server.gets()["f"] >= len(CONTENT) // 20_000


def test_cuts_without_headway_end(fetch, server):
    """A server that cuts at the same place and knows no ranges is given up on."""
    server.ranges = False
    server.always["f"] = Fault(cut=20_000)
    with pytest.raises(SourceFailed):
        fetch(attempts=3)
    assert server.gets()["f"] <= 4


def test_stall_is_a_cut(fetch, server):
    """A server that falls silent is left after the stall timeout, and the file resumed."""
    server.fail("f", Fault(stall=100_000))
    assert fetch(stall_timeout=0.3) == CONTENT
    assert server.asked_ranges()[1] is not None


def test_refused_ranges_begin_again(fetch, server):
    """A server without ranges sends it all again, and nothing is doubled."""
    server.ranges = False
    server.fail("f", Fault(cut=100_000))
    assert fetch() == CONTENT


def test_changed_content_begins_again(fetch, server):
    """A file that changes between two parts is fetched anew: parts of two are never joined."""
    server.fail("f", Fault(cut=100_000), Fault(status=503), Fault(status=503), Fault(status=503))
    with pytest.raises(SourceFailed):
        fetch()
    server.files["f"] = CONTENT[::-1]
    assert fetch() == CONTENT[::-1]


def test_overlooked_if_range_is_noticed(fetch, server):
    """A server that honours Range but not If-Range is caught by its new validator."""
    server.fail("f", Fault(cut=100_000), Fault(headers=(("ETag", '"other"'),)))
    assert fetch() == CONTENT
    assert len(server.asked_ranges()) == 3
    assert server.asked_ranges()[2] is None


@pytest.mark.parametrize("etag", ['W/"weak"', ""])
def test_no_strong_validator_no_resume(fetch, server, etag):
    """Without a strong validator a cut file is fetched from the beginning."""
    server.etags["f"] = etag
    server.fail("f", Fault(cut=100_000))
    assert fetch() == CONTENT
    assert server.asked_ranges() == [None, None]


def test_other_content_wanted_is_not_resumed(fetch, server):
    """A part of one content is not continued when another one is asked for under the same name."""
    server.fail("f", Fault(cut=100_000), *(Fault(status=503) for _ in range(3)))
    with pytest.raises(SourceFailed):
        fetch(sha256="a" * 64)
    assert fetch(sha256="b" * 64) == CONTENT
    assert server.asked_ranges()[-1] is None


def test_complete_part_needs_no_bytes(fetch, server):
    """A part that was complete when its process died is finished without sending it again."""
    assert fetch() == CONTENT
    assert sidecar_of(fetch.part).is_file()
    assert fetch() == CONTENT
    assert server.asked_ranges() == [None, f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize(
    ("status", "said"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "404"), (410, "410")]
)
def test_final_answers_are_not_retried(fetch, server, status, said):
    """What waiting cannot change is said at once."""
    server.always["f"] = Fault(status=status)
    with pytest.raises(SourceFailed, match=said):
        fetch()
    assert server.gets()["f"] == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/f", "nowhere://x/f", "http://[/f"])
def test_address_without_a_server_fails(tmp_path, url, monkeypatch):
    """An address nobody answers at ends in the error of a source, not in one of httpx."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(SourceFailed):
        Downloader(attempts=2, sleep=lambda _: None).download(Remote(url), tmp_path / "p", lambda *_: None)


def test_full_disk_is_said_before_the_first_byte(fetch, monkeypatch):
    """A file that will not fit is refused with the space that is needed and what to do."""
    usage = shutil.disk_usage(fetch.part.parent)
    monkeypatch.setattr(landing.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ConfigurationError, match="AI_MODEL_PATH"):
        fetch()


def test_disk_that_fills_up_is_said(fetch, monkeypatch):
    """ENOSPC in the middle of a download becomes an error with the path and the remedy."""
    # The kernel's own full device stands in for the disk.
    monkeypatch.setattr(download, "discard", lambda partial: partial.symlink_to("/dev/full"))
    with pytest.raises(ConfigurationError, match=r"No space is left to write .*part.*AI_MODEL_PATH"):
        fetch()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 5000), max_size=4), size=st.integers(1, 5000))
def test_any_split_gives_the_same_bytes(server, tmp_path_factory, cuts, size):
    """Wherever a download is cut, and however often, the joined file is the original."""
    content = random.Random(size).randbytes(size)
    server.files["f"] = content
    server.fail("f", *(Fault(cut=cut) for cut in cuts if cut < size))
    part = tmp_path_factory.mktemp("split") / "part"
    downloader = Downloader(attempts=6, sleep=lambda _: None)
    downloader.download(Remote(f"{server.url}/f"), part, lambda *_: None)
    assert part.read_bytes() == content


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(split=st.integers(0, 2000))
def test_resume_in_a_new_process_gives_the_same_bytes(server, tmp_path_factory, split):
    """A part of any length that an earlier process left is completed to the original."""
    content = random.Random(2).randbytes(2000)
    server.files["f"] = content
    part = tmp_path_factory.mktemp("resume") / "part"
    downloader = Downloader(attempts=2, sleep=lambda _: None)
    downloader.download(Remote(f"{server.url}/f"), part, lambda *_: None)
    part.write_bytes(content[:split])
    downloader.download(Remote(f"{server.url}/f"), part, lambda *_: None)
    assert part.read_bytes() == content
    assert len(list(itertools.chain(part.parent.iterdir()))) == 2
