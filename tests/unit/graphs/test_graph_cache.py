"""A graph is made once, and again exactly when it has to be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from resilient_ai import errors
from resilient_ai._models.graphs import build as building
from resilient_ai._models.graphs import ensure_graph
from tiny_checkpoints import Tiny
from tiny_families import Qwen


@pytest.fixture
def folder(tmp_path):
    return Tiny().write(tmp_path / "model")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def builds(monkeypatch):
    """The builds that really happen, as a growing list of folders."""
    made = []
    build = building.build_graph

    def counting(folder, **options):
        made.append(folder)
        return build(folder, **options)

    monkeypatch.setattr(building, "build_graph", counting)
    return made


def ensure(folder, cache, **options):
    defaults = {"family": "bert", "pooling": "mean", "head": "embedding"}
    return ensure_graph(folder, cache, **{**defaults, **options})


def files(cache):
    return sorted(path.name for path in cache.iterdir())


def test_a_second_call_finds_the_first_ones_graph(folder, cache, builds):
    """What is in the cache is returned without building, and without touching the disk."""
    first = ensure(folder, cache)
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert ensure(folder, cache) == first
    assert len(builds) == 1
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before
    assert files(cache) == [first.name, f"{first.name}.json", f"{first.name}.lock"]


@pytest.mark.parametrize("inline_limit", [0, 2**30])
def test_the_same_weights_give_the_same_bytes(folder, tmp_path, inline_limit):
    """Two builds of one model differ in no byte, external weights included."""
    one, two = (ensure(folder, tmp_path / name, inline_limit=inline_limit) for name in "ab")
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()
    data = f"{one.name}.data"
    assert one.with_name(data).exists() == (inline_limit == 0)
    if inline_limit == 0:
        assert one.with_name(data).read_bytes() == two.with_name(data).read_bytes()


def test_options_and_folders_have_graphs_of_their_own(folder, cache, tmp_path, builds):
    """Graphs of other options, or of other models, do not replace one another."""
    other = Tiny(seed=1).write(tmp_path / "other")
    paths = [
        ensure(folder, cache),
        ensure(folder, cache, token_outputs=False),
        ensure(folder, cache, pooling="cls"),
        ensure(folder, cache, precision="fp16"),
        ensure(folder, cache, device="cpu"),
        ensure(folder, cache, inline_limit=0),
        ensure(other, cache),
    ]
    assert len(set(paths)) == len(builds) == 7
    for _ in range(2):
        ensure(folder, cache)
        ensure(other, cache)
        ensure(folder, cache, precision="fp16")
    assert len(builds) == 7


def test_new_weights_make_a_new_graph(folder, cache, builds):
    """Other values in the weights file are seen, and change the graph."""
    before = ensure(folder, cache).read_bytes()
    Tiny(seed=1).write(folder)
    assert ensure(folder, cache).read_bytes() != before
    assert len(builds) == 2


def test_a_new_configuration_makes_a_new_graph(folder, cache, builds):
    """A changed field is seen even when the weights are the same."""
    before = ensure(folder, cache).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert ensure(folder, cache).read_bytes() != before
    assert len(builds) == 2


def test_new_answers_make_a_new_graph(tmp_path, cache, builds):
    """A reranker's words are part of what it is, and so is the tokenizer that numbers them."""
    folder = Qwen().write(tmp_path / "qwen")
    options = {"family": "qwen3", "pooling": None, "head": "score"}
    first = ensure(folder, cache, **options)
    assert ensure(folder, cache, answers=("maybe", "no"), **options) != first
    before = first.read_bytes()
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"yes": 9, "no": 2}}}))
    assert ensure(folder, cache, **options).read_bytes() != before
    assert len(builds) == 3


def test_a_new_builder_makes_a_new_graph(folder, cache, builds, monkeypatch):
    """Graphs of an older version of the builder are not used."""
    ensure(folder, cache)
    monkeypatch.setattr(building, "BUILDER_VERSION", "next")
    ensure(folder, cache)
    ensure(folder, cache)
    assert len(builds) == 2


@pytest.mark.parametrize("part", ["", ".data"])
@pytest.mark.parametrize("damage", ["cut", "flip", "delete", "empty"])
def test_a_damaged_graph_is_made_again(folder, cache, builds, part, damage):
    """Truncated, altered or deleted, the graph or its weights come back as they were."""
    path = ensure(folder, cache, inline_limit=0)
    victim = path.with_name(path.name + part)
    whole = victim.read_bytes()
    if damage == "delete":
        victim.unlink()
    else:
        flipped = whole[:-1] + bytes([whole[-1] ^ 1])
        victim.write_bytes({"cut": whole[:-10], "flip": flipped, "empty": b""}[damage])
    # A clock of coarse grain must not hide a change of the same size.
    if damage != "delete":
        os.utime(victim, ns=(1, 1))
    assert ensure(folder, cache, inline_limit=0) == path
    assert victim.read_bytes() == whole
    assert len(builds) == 2


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"builder": "1"}', '{"sources": {"a": {"size": 1}}}'])
def test_a_damaged_record_makes_the_graph_again(folder, cache, builds, text):
    """Without a readable record nothing is trusted."""
    path = ensure(folder, cache)
    path.with_name(f"{path.name}.json").write_text(text)
    ensure(folder, cache)
    assert len(builds) == 2


def test_a_touched_file_is_read_once_and_not_built(folder, cache, builds, monkeypatch):
    """Another time with the same bytes costs one reading, after which the new time is known."""
    path = ensure(folder, cache)
    for file in (path, folder / "model.safetensors"):
        os.utime(file, ns=(1, 1))
    ensure(folder, cache)
    monkeypatch.setattr(building.FileStamp, "of", pytest.fail)
    assert ensure(folder, cache) == path
    assert len(builds) == 1


def test_what_a_dead_process_left_is_cleared(folder, cache, builds):
    """Files of a build that was killed do not stay, and do not stand in the way."""
    path = ensure(folder, cache)
    path.with_name(f"{path.name}.json").unlink()
    left = cache / f".{path.name}.partial"
    left.mkdir()
    (left / path.name).write_bytes(b"half")
    ensure(folder, cache)
    assert files(cache) == [path.name, f"{path.name}.json", f"{path.name}.lock"]


def test_a_cache_that_cannot_be_made_says_what_to_do(folder, tmp_path):
    """The message names the folder and a way out."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(errors.ConfigurationError, match="chmod") as caught:
        ensure(folder, tmp_path / "file" / "cache")
    assert str(tmp_path / "file" / "cache") in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_cache_that_cannot_be_written_says_what_to_do(folder, cache):
    """A read-only folder is the caller's to change."""
    cache.mkdir(mode=0o500)
    with pytest.raises(errors.ConfigurationError, match="chmod"):
        ensure(folder, cache)


def test_a_valid_graph_in_a_read_only_cache_is_used(folder, cache, builds, monkeypatch):
    """A cache baked into an image works, even when its files' times have changed."""
    path = ensure(folder, cache)
    os.utime(path, ns=(1, 1))

    def read_only(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(building.Record, "write", read_only)
    monkeypatch.setattr(building.Path, "mkdir", read_only)
    assert ensure(folder, cache) == path
    assert len(builds) == 1


def test_a_full_disk_leaves_nothing_behind(folder, cache, monkeypatch):
    """When writing fails the error is ours, and the next try starts clean."""

    def full(graph, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(building, "write_graph", full)
        with pytest.raises(errors.ConfigurationError, match="No space left"):
            ensure(folder, cache)
        assert [name for name in files(cache) if not name.endswith(".lock")] == []
    assert ensure(folder, cache).is_file()


def test_a_disk_that_is_too_full_is_told_before_anything_is_written(folder, cache, monkeypatch):
    """What is needed and what is free stand in the message, and nothing was tried."""
    usage = shutil.disk_usage("/")._replace(free=5_000_000)
    with monkeypatch.context() as patch:
        patch.setattr(building.shutil, "disk_usage", lambda _: usage)
        patch.setattr(building, "write_graph", pytest.fail)
        with pytest.raises(errors.ConfigurationError, match=r"needs \d+ MB .* 5 MB are free"):
            ensure(folder, cache)
        assert [name for name in files(cache) if not name.endswith(".lock")] == []
    assert ensure(folder, cache).is_file()


def test_a_really_full_disk_leaves_nothing_behind(folder, cache, monkeypatch):
    """The system's own refusal to write weights becomes our error, and no part of them stays."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no device that is always full")
    open_file = Path.open

    def open_full(path, mode="r", **options):
        return open_file(full if path.name.endswith(".data") else path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        with pytest.raises(errors.ConfigurationError, match="No space left"):
            ensure(folder, cache, inline_limit=0)
    assert [name for name in files(cache) if not name.endswith(".lock")] == []


def test_waiting_for_another_process_ends(folder, cache):
    """A builder that never finishes costs its waiters `lock_timeout` and no more."""
    path = ensure(folder, cache)
    path.unlink()
    with FileLock(f"{path}.lock"), pytest.raises(errors.DeadlineExceeded, match=path.name):
        ensure(folder, cache, lock_timeout=0.01)


def test_threads_share_one_build(folder, cache, builds):
    """Of many threads that ask at once one builds, and all get the same graph."""
    gate, got = threading.Barrier(8), []

    def ask():
        gate.wait()
        got.append(ensure(folder, cache))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len(set(got)) == 1
    assert len(builds) == 1


ASK = """
import sys
from pathlib import Path
from resilient_ai._models.graphs import ensure_graph
sys.stdin.readline()
for _ in range(3):
    path = ensure_graph(
        Path(sys.argv[1]), Path(sys.argv[2]), family="bert", pooling="mean", head="embedding", inline_limit=0
    )
print(path)
"""


@pytest.mark.slow
def test_processes_share_one_cache(folder, cache):
    """Processes that ask at once all get one whole graph."""
    command = [sys.executable, "-c", ASK, str(folder), str(cache)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(3)]
    answers = [child.communicate("go\n", timeout=60)[0].strip() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    path = ensure(folder, cache, inline_limit=0)
    assert answers == [str(path)] * 3
    assert Path(f"{path}.data").read_bytes()
    assert files(cache) == sorted(path.name + end for end in ("", ".data", ".json", ".lock"))
