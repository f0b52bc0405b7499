"""The store against real servers, real processes and a real disk."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from file_server import COMMIT, Fault

from resilient_ai._models.cards import ModelCard, ModelFile, ModelSource
from resilient_ai._models.download import Downloader
from resilient_ai._models.landing import partial_of
from resilient_ai._models.store import ModelStore
from resilient_ai.errors import ConfigurationError, DeadlineExceeded, ModelCorrupt, ModelNotFound

WEIGHTS = random.Random(3).randbytes(400_000)
TOKENIZER = b'{"a tokenizer": true}'
CONTENT = {"tokenizer.json": TOKENIZER, "model.safetensors": WEIGHTS}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def card(*, pinned=True, sources=(), **changes):
    files = (
        ModelFile("tokenizer.json", "tokenizer", sha(TOKENIZER) if pinned else None),
        ModelFile("model.safetensors", "weights", sha(WEIGHTS) if pinned else None),
    )
    fields = {"name": "tiny", "kind": "embedding", "family": "bert", "dimension": 4, "pooling": "cls"}
    return ModelCard(**{**fields, "files": files, "sources": sources, **changes})


@pytest.fixture
def store(server, tmp_path):
    """A store whose mirror is the server, and which does not wait between tries."""
    server.files |= {f"tiny/{path}": content for path, content in CONTENT.items()}
    downloader = Downloader(attempts=2, stall_timeout=5, sleep=lambda _: None)
    return ModelStore(tmp_path / "models", mirror=server.url, downloader=downloader)


def test_pull_lands_verified_files(store, server):
    """A pull leaves each file under its name, verified, and asks for each once."""
    model = store.ensure(card())
    assert {p: (model.folder / p).read_bytes() for p in CONTENT} == CONTENT
    assert model.sha256 == {path: sha(content) for path, content in CONTENT.items()}
    assert (model.body, model.source, model.file("weights").name) == (
        "weights",
        f"{server.url}/tiny",
        "model.safetensors",
    )
    assert sorted(path.name for path in model.folder.iterdir()) == sorted(CONTENT)
    assert server.gets() == {f"tiny/{path}": 1 for path in CONTENT}


def test_second_pull_asks_nobody(store, server):
    """What is at hand and verified is not asked for again, by this store or a later one."""
    store.ensure(card())
    before = len(server.requests)
    store.ensure(card())
    ModelStore(store.root, mirror=server.url).ensure(card())
    assert len(server.requests) == before


def test_progress_tells_of_each_file(store):
    """Progress is told by file, up to its full size."""
    seen = {}
    store.ensure(card(), progress=lambda file, done, total: seen.update({file: (done, total)}))
    assert seen == {path: (len(content), len(content)) for path, content in CONTENT.items()}


def test_wrong_bytes_once_are_fetched_again(store, server):
    """Bytes that are not the pinned ones are put aside and fetched once more."""
    server.fail("tiny/model.safetensors", Fault(content=WEIGHTS[::-1]))
    model = store.ensure(card())
    assert model.file("weights").read_bytes() == WEIGHTS
    assert (store.root / ".quarantine/tiny/model.safetensors").read_bytes() == WEIGHTS[::-1]


def test_wrong_bytes_always_are_never_installed(store, server):
    """A source that always gives other bytes ends in an error with both hashes, and no file."""
    server.files["tiny/model.safetensors"] = WEIGHTS[::-1]
    with pytest.raises(ModelCorrupt) as caught:
        store.ensure(card())
    assert all(
        part in str(caught.value)
        for part in (sha(WEIGHTS), sha(WEIGHTS[::-1]), "model.safetensors", "remove")
    )
    assert server.gets()["tiny/model.safetensors"] == 2
    assert not (store.root / "tiny/model.safetensors").exists()
    assert store.installed(card()) is None


def test_next_source_makes_up_for_a_lying_one(store, server, tmp_path):
    """When a mirror gives wrong bytes, the card's own source is asked."""
    server.files["good/model.safetensors"] = WEIGHTS
    server.files["tiny/model.safetensors"] = b"rubbish"
    model = store.ensure(card(sources=(ModelSource("http", f"{server.url}/good"),)))
    assert (model.file("weights").read_bytes(), model.source) == (WEIGHTS, f"{server.url}/good")


def test_unpinned_hash_is_binding_once_recorded(store, server):
    """Without a pin the first download's hash is recorded, and other bytes are refused later."""
    model = store.ensure(card(pinned=False))
    model.file("weights").write_bytes(b"altered")
    server.files["tiny/model.safetensors"] = b"other"
    with pytest.raises(ModelCorrupt, match=sha(WEIGHTS)):
        store.ensure(card(pinned=False))


@pytest.mark.parametrize("damage", [lambda b: b[:1000], lambda b: b[:-1] + b"\0", lambda _: b""])
def test_damaged_file_is_repaired(store, server, damage):
    """A truncated or altered file is put aside, fetched again and never handed out."""
    weights = store.ensure(card()).file("weights")
    weights.write_bytes(damage(WEIGHTS))
    os.utime(weights, ns=(1, 1))
    assert not store.verify(card()).ok
    assert store.installed(card()) is None
    assert store.ensure(card()).file("weights").read_bytes() == WEIGHTS
    assert (store.root / ".quarantine/tiny/model.safetensors").read_bytes() == damage(WEIGHTS)
    assert server.gets() == {"tiny/tokenizer.json": 1, "tiny/model.safetensors": 2}


def test_bit_rot_behind_the_stamp_is_found_on_demand(store):
    """A change that leaves size and time alone is found by a full verification."""
    weights = store.ensure(card()).file("weights")
    stamp = weights.stat()
    weights.write_bytes(WEIGHTS[::-1])
    os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    report = store.verify(card())
    assert {r.file.path: r.verdict for r in report.files} == {
        "tokenizer.json": "ok",
        "model.safetensors": "altered",
    }
    with pytest.raises(ModelCorrupt, match=r"model\.safetensors"):
        report.raise_for_files()


def test_offline_connects_to_nobody(store, server):
    """An offline store says so, with the way out, and makes no request at all."""
    offline = ModelStore(store.root, mirror=server.url, offline=True)
    with pytest.raises(ModelNotFound, match=r"offline.*resilient-ai models pull tiny"):
        offline.ensure(card())
    assert server.requests == []


def test_offline_uses_what_is_there(store, server):
    """Offline, a model that was pulled before is served."""
    store.ensure(card())
    assert ModelStore(store.root, offline=True).ensure(card()).body == "weights"


def test_missing_file_names_every_source(store, server):
    """A file that nobody has is reported with each source's answer."""
    del server.files["tiny/model.safetensors"]
    with pytest.raises(ModelNotFound) as caught:
        store.ensure(card(sources=(ModelSource("http", f"{server.url}/else"),)))
    assert all(
        part in str(caught.value)
        for part in (f"{server.url}/tiny", f"{server.url}/else", "404", "model.safetensors")
    )


def test_optional_file_may_be_missing(store, server):
    """An optional file comes along when the source has it, and its absence is no error."""
    vocabulary, readme = (
        ModelFile("vocab.txt", "config", optional=True),
        ModelFile("README.md", "config", optional=True),
    )
    server.files["tiny/vocab.txt"] = b"words"
    with_optional = card(files=(*card().files, readme, vocabulary))
    model = store.ensure(with_optional)
    assert [path.name for path in model.files["config"]] == ["vocab.txt"]
    assert store.ensure(with_optional).sha256 == model.sha256


def test_threads_pull_once(store, server):
    """Twenty threads that want a model cause one request per file."""
    barrier, models = threading.Barrier(20), []

    def pull():
        barrier.wait()
        models.append(store.ensure(card()))

    threads = [threading.Thread(target=pull) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(models) == 20
    assert server.gets() == {f"tiny/{path}": 1 for path in CONTENT}


def test_missing_sidecar_is_fetched_though_unlisted(store, server, tmp_path):
    """A graph that keeps its weights outside brings the file they are in."""
    graph, data = split_graph(tmp_path)
    server.files |= {"tiny/onnx/model.onnx": graph, "tiny/onnx/model.onnx.data": data}
    wanted = card(family="onnx", files=(card().files[0], ModelFile("onnx/model.onnx", "graph")))
    model = store.ensure(wanted)
    assert [path.name for path in model.files["graph-data"]] == ["model.onnx.data"]
    assert not model.file("graph-data").is_symlink()
    model.file("graph-data").unlink()
    assert store.installed(wanted) is None
    del server.files["tiny/onnx/model.onnx.data"]
    with pytest.raises(ModelNotFound, match=r"onnx/model\.onnx\.data"):
        store.ensure(wanted)


def split_graph(folder: Path) -> tuple[bytes, bytes]:
    """An ONNX graph and, apart from it, its weights."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    weights = numpy_helper.from_array(np.arange(64, dtype=np.float32), "w")
    value = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [64])
    node = helper.make_node("Identity", ["w"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [], [value], [weights]))
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    return (folder / "model.onnx").read_bytes(), (folder / "model.onnx.data").read_bytes()


def test_remove_frees_what_was_pulled(store, server):
    """Removing a model deletes its files, and it can be pulled again."""
    store.ensure(card())
    assert store.remove(card()) >= len(WEIGHTS)
    assert not store.is_available(card())
    assert not (store.root / "tiny").exists()
    assert store.ensure(card()).folder.is_dir()


PULL = """
import json, sys
from resilient_ai._models.cards import ModelCard
from resilient_ai._models.store import ModelStore
arguments = json.loads(sys.argv[1])
card = ModelCard.from_table(arguments["card"])
store = ModelStore(arguments["root"], mirror=arguments.get("mirror"), offline=arguments.get("offline", False))
try:
    model = store.ensure(card)
except Exception as exc:
    print(json.dumps({"error": type(exc).__name__, "said": str(exc)}))
else:
    print(json.dumps({"source": model.source, "revision": model.revision, "sha256": dict(model.sha256)}))
"""


def table(wanted: ModelCard) -> dict:
    """A card as TOML would hold it."""
    files = [
        {"path": f.path, "role": f.role, **({"sha256": f.sha256} if f.sha256 else {})} for f in wanted.files
    ]
    sources = [{"kind": s.kind, "location": s.location} for s in wanted.sources]
    return {
        "name": "tiny",
        "kind": "embedding",
        "family": "bert",
        "dimension": 4,
        "pooling": "cls",
        "files": files,
        "sources": sources,
    }


def start_pull(root, wanted, environment=None, **arguments):
    arguments |= {"root": str(root), "card": table(wanted)}
    command = [sys.executable, "-c", PULL, json.dumps(arguments)]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", **(environment or {})}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def outcome(process):
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


@pytest.mark.slow
def test_processes_pull_once(store, server):
    """Two processes that pull the same model at once cause one request per file."""
    server.fail("tiny/model.safetensors", Fault(stall=len(WEIGHTS)))
    processes = [start_pull(store.root, card(), mirror=server.url) for _ in range(2)]
    assert server.stalled.wait(30)
    server.released.set()
    first, second = [outcome(process) for process in processes]
    assert first["sha256"] == second["sha256"] == {path: sha(content) for path, content in CONTENT.items()}
    assert server.gets() == {f"tiny/{path}": 1 for path in CONTENT}


@pytest.mark.slow
def test_killed_pull_leaves_a_part_and_no_lock(store, server):
    """After kill -9 no half file has its final name, nobody is locked out, and the pull resumes."""
    server.fail("tiny/model.safetensors", Fault(stall=300_000))
    process = start_pull(store.root, card(), mirror=server.url)
    final = store.root / "tiny/model.safetensors"
    deadline = time.monotonic() + 30
    while not (partial_of(final).is_file() and partial_of(final).stat().st_size > 0):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    waiter = ModelStore(store.root, mirror=server.url, lock_timeout=0.2)
    with pytest.raises(DeadlineExceeded, match=f"process {process.pid} on"):
        waiter.ensure(card())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = partial_of(final).stat().st_size
    assert not final.exists()
    assert not waiter.is_available(card())
    server.released.set()
    assert waiter.ensure(card()).file("weights").read_bytes() == WEIGHTS
    assert server.asked_ranges()[-1] == f"bytes={kept}-"


@pytest.fixture
def hub(server, tmp_path):
    """A small hub with the model in it, and the environment that leads to it."""
    server.hub = True
    server.files |= {f"org/tiny/{path}": content for path, content in CONTENT.items()}
    return {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


HUB_CARD = {"pinned": False, "sources": (ModelSource("hub", "org/tiny"),)}


@pytest.mark.slow
@pytest.mark.parametrize("lfs", [True, False])
def test_hub_files_are_verified_by_its_metadata(store, server, hub, lfs):
    """Pulling from the hub records commit and hash, checked against SHA-256 or git's own id."""
    server.lfs = lfs
    answer = outcome(start_pull(store.root, card(**HUB_CARD), hub))
    assert answer == {
        "source": "hub:org/tiny",
        "revision": COMMIT,
        "sha256": {path: sha(content) for path, content in CONTENT.items()},
    }
    assert server.gets() == {f"org/tiny/resolve/{COMMIT}/{path}": 1 for path in CONTENT}


@pytest.mark.slow
@pytest.mark.parametrize("lfs", [True, False])
def test_hub_that_lies_is_not_believed(store, server, hub, lfs):
    """Bytes that contradict the hub's own metadata are refused, pin or no pin."""
    server.lfs = lfs
    server.always["org/tiny/model.safetensors"] = Fault(content=WEIGHTS[::-1])
    answer = outcome(start_pull(store.root, card(**HUB_CARD), hub))
    assert answer["error"] == "ModelCorrupt"
    assert not (store.root / "tiny/model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "offline"])
def test_offline_hub_is_not_asked(store, server, hub, switch):
    """Neither HF_HUB_OFFLINE nor our own switch lets a single request through."""
    environment = {**hub, "HF_HUB_OFFLINE": "1"} if switch == "HF_HUB_OFFLINE" else hub
    answer = outcome(start_pull(store.root, card(**HUB_CARD), environment, offline=switch == "offline"))
    assert answer["error"] == "ModelNotFound"
    assert switch in answer["said"]
    assert server.requests == []


@pytest.mark.slow
def test_hub_cache_is_used_offline(store, server, hub):
    """Files that the hub's own tools cached are used without network, as real files."""
    cache = Path(hub["HF_HOME"]) / "hub/models--org--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text(COMMIT)
    (cache / "blobs").mkdir()
    (cache / "snapshots" / COMMIT).mkdir(parents=True)
    for path, content in CONTENT.items():
        (cache / "blobs" / sha(content)).write_bytes(content)
        (cache / "snapshots" / COMMIT / path).symlink_to(f"../../blobs/{sha(content)}")
    answer = outcome(start_pull(store.root, card(**HUB_CARD), hub, offline=True))
    assert answer["sha256"] == {path: sha(content) for path, content in CONTENT.items()}
    assert not any((store.root / "tiny" / path).is_symlink() for path in CONTENT)
    assert server.requests == []


@pytest.mark.slow
def test_hub_that_is_busy_is_asked_again(store, server, hub):
    """A hub that is overloaded when it is asked about a file is asked again."""
    server.busy = 1
    assert outcome(start_pull(store.root, card(**HUB_CARD), hub))["revision"] == COMMIT
    assert server.busy == 0


@pytest.mark.slow
def test_later_files_come_from_the_first_ones_commit(store, server, hub):
    """All files of a pull are of one commit, whatever the default branch says later."""
    outcome(start_pull(store.root, card(**HUB_CARD), hub))
    heads = [path for method, path, _ in server.requests if method == "HEAD"]
    assert heads == ["/org/tiny/resolve/main/tokenizer.json", f"/org/tiny/resolve/{COMMIT}/model.safetensors"]


@pytest.mark.slow
def test_unknown_repository_is_explained(store, server, hub):
    """A repository the hub does not have is reported by name, without retries."""
    missing = card(pinned=False, sources=(ModelSource("hub", "org/nothing"),))
    answer = outcome(start_pull(store.root, missing, hub))
    assert (answer["error"], "org/nothing" in answer["said"]) == ("ModelNotFound", True)
    assert len(server.requests) == 1


# Root may write anywhere, so root becomes nobody; after the imports, late ones too, which nobody may not read.
_BECOME_NOBODY = "import os, filelock; os.geteuid() or os.setuid(65534)"
PULL_AS_NOBODY = PULL.replace("arguments = ", f"{_BECOME_NOBODY}\narguments = ", 1)


@pytest.mark.slow
def test_read_only_folder_is_explained():
    """A folder that may not be written is named, with the way out; a model in it is still served."""
    root = Path(tempfile.mkdtemp())
    try:
        (root / "tiny").mkdir()
        for path, content in CONTENT.items():
            (root / "tiny" / path).write_bytes(content)
        for folder in (root / "tiny", root):
            folder.chmod(0o555)
        arguments = {"root": str(root), "card": table(card())}
        other = {
            "root": str(root),
            "card": {**table(card()), "name": "other"},
            "mirror": "http://127.0.0.1:1",
        }
        served, refused = [
            json.loads(
                subprocess.check_output([sys.executable, "-c", PULL_AS_NOBODY, json.dumps(each)], timeout=60)
            )
            for each in (arguments, other)
        ]
        assert served["sha256"] == {path: sha(content) for path, content in CONTENT.items()}
        assert refused["error"] == "ConfigurationError"
        assert str(root) in refused["said"]
        assert "AI_MODEL_PATH" in refused["said"]
    finally:
        for folder in (root, root / "tiny"):
            folder.chmod(0o755)
        shutil.rmtree(root)


@pytest.mark.parametrize("told", [True, False])
def test_model_that_does_not_fit_is_refused(store, server, monkeypatch, told):
    """A model too large for the disk is refused, before any request when the card tells sizes."""
    from resilient_ai._models import landing

    sizes = {"tokenizer.json": len(TOKENIZER), "model.safetensors": len(WEIGHTS)}
    files = tuple(replace(file, size=sizes[file.path] if told else None) for file in card().files)
    usage = shutil.disk_usage(store.root.parent)
    monkeypatch.setattr(landing.shutil, "disk_usage", lambda _: usage._replace(free=200_000))
    with pytest.raises(ConfigurationError, match="MB free"):
        store.ensure(card(files=files))
    assert not (store.root / "tiny/model.safetensors").exists()
    assert (server.requests == []) is told


def test_what_an_earlier_pull_brought_needs_no_room(store, server, monkeypatch):
    """A pull that was broken off is finished on a disk that has room for the rest alone."""
    from resilient_ai._models import landing

    refused = (Fault(cut=300_000), Fault(status=503), Fault(status=503))
    server.fail("tiny/model.safetensors", *refused)
    sized = card(files=tuple(replace(file, size=len(CONTENT[file.path])) for file in card().files))
    with pytest.raises(ModelNotFound):
        store.ensure(sized)
    kept = partial_of(store.root / "tiny/model.safetensors").stat().st_size
    usage = shutil.disk_usage(store.root.parent)
    monkeypatch.setattr(landing.shutil, "disk_usage", lambda _: usage._replace(free=len(WEIGHTS) - kept))
    assert store.ensure(sized).file("weights").read_bytes() == WEIGHTS
