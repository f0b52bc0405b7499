"""What is mapped can be brought in before it is touched, where the system can do that."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from resilient_ai._inference import paging
from resilient_ai._inference.paging import page_in, start_paging_in

SIZE = 64 * mmap.PAGESIZE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "graph.onnx.data"
    path.write_bytes(b"\1" * SIZE)
    return path


@pytest.fixture
def mapped(file):
    """Two parts of a file, mapped each for itself, as a session maps tensors."""
    with file.open("rb") as stream:
        parts = [
            mmap.mmap(stream.fileno(), SIZE // 2, prot=mmap.PROT_READ, offset=offset)
            for offset in (0, SIZE // 2)
        ]
    yield parts
    for part in parts:
        part.close()


def present(file):
    """How many bytes of a file this process could read without a fault."""
    areas = Path("/proc/self/smaps").read_text().split(f"{file}\n")[1:]
    return sum(int(area.split("Rss:")[1].split()[0]) * 1024 for area in areas)


def test_what_is_mapped_is_there(file, mapped):
    """Pages are present as far as they are said to be, which is all or, on an older system, none."""
    assert present(file) == 0
    done = page_in(file)
    assert done in {0, SIZE}
    assert present(file) == done


def test_a_path_that_leads_there(file, mapped, tmp_path, monkeypatch):
    """A file may be named by a link, from the folder it is in."""
    (tmp_path / "link").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    assert page_in(Path("link")) == present(file)


def test_in_several_calls(file, mapped, monkeypatch):
    """What is too much for one call takes several."""
    monkeypatch.setattr(paging, "_MOST_BYTES", SIZE // 2)
    assert present(file) == 0
    assert page_in(file) == present(file)


def test_tables_stay_where_they_are(file, mapped, monkeypatch):
    """Of a table of tokens nothing is read ahead."""
    monkeypatch.setattr(paging, "_TABLE", SIZE // 2)
    assert page_in(file) == present(file) == 0


def test_a_thread_of_its_own(file, mapped):
    """It can be left to a thread, which ends by itself."""
    thread = start_paging_in(file)
    thread.join(10)
    assert not thread.is_alive()
    assert present(file) in {0, SIZE}


@pytest.mark.parametrize(
    "told", [None, "nonsense {}", "10-20 r--s 00000000 fd:00 1 {}", "zz-20 r--s 0 0 1 {}"]
)
def test_it_is_never_needed(file, tmp_path, told):
    """Where the system does not tell, tells nonsense or refuses, nothing is done and nothing raised."""
    maps = tmp_path / "maps"
    if told is not None:
        maps.write_text(f"{told.format(file)}\n")
    assert page_in(file, maps=maps) == 0


def test_what_is_not_mapped(file):
    """A file that nobody mapped has nothing to bring in."""
    assert page_in(file) == 0
