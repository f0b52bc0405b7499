"""What is on disk: hashes, stamps, manifests, landing, locks, and models found where they lie."""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import subprocess
import sys

import pytest

from resilient_ai._models import inspection
from resilient_ai._models.cards import ModelCard, ModelFile, ModelSource
from resilient_ai._models.landing import explain, land, partial_of, write_whole, writing
from resilient_ai._models.locks import exclusive
from resilient_ai._models.manifest import FileRecord, Manifest
from resilient_ai._models.places import local_folder
from resilient_ai._models.store import ModelStore
from resilient_ai._models.verify import external_data, git_blob_sha1, sha256_of, stamp_of
from resilient_ai.errors import ConfigurationError, DeadlineExceeded, ModelCorrupt, ModelNotFound

RECORD = FileRecord("a" * 64, 3, 17, "hub:o/n", "main", ("x.data",))


def sha(content):
    return hashlib.sha256(content).hexdigest()


def put(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def card(*sources, pinned=None, **changes):
    files = (ModelFile("tokenizer.json", "tokenizer"), ModelFile("model.safetensors", "weights", pinned))
    fields = {"name": "tiny", "kind": "embedding", "family": "bert", "dimension": 4, "pooling": "cls"}
    return ModelCard(**{**fields, "files": files, "sources": sources, **changes})


MODEL = {"tokenizer.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that were read in full."""
    names = []

    def counting(path):
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(inspection, "sha256_of", counting)
    return names


def test_hashes_are_the_known_ones(tmp_path):
    """SHA-256 and git's blob id of a known content are the published ones."""
    path = tmp_path / "f"
    path.write_bytes(b"hello\n")
    assert sha256_of(path) == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert git_blob_sha1(path) == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_what_is_no_graph_is_corrupt(tmp_path):
    """A file that is no ONNX graph is reported as such, with its path."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"<html>not here</html>")
    with pytest.raises(ModelCorrupt, match="is not an ONNX graph"):
        external_data(path)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "No space"),
        (errno.EDQUOT, "No space"),
        (errno.EACCES, "cannot be written"),
        (errno.EROFS, "cannot be written"),
        (errno.EPERM, "cannot be written"),
        (errno.EIO, "could not be written"),
    ],
)
def test_disk_errors_are_explained(tmp_path, number, said):
    """Each refusal of the disk names the path and what to do about it."""
    message = str(explain(OSError(number, "x"), tmp_path))
    assert said in message
    assert str(tmp_path) in message
    assert "AI_MODEL_PATH" in message


def test_own_errors_pass_through_writing(tmp_path):
    """An error of ours that happens to be an OSError is not mistaken for the disk's."""
    with pytest.raises(DeadlineExceeded), writing(tmp_path):
        raise DeadlineExceeded("late")


def test_landing_is_a_rename(tmp_path):
    """A finished file appears under its final name with the very inode it grew in."""
    final = tmp_path / "f"
    partial_of(final).write_bytes(b"x")
    inode = partial_of(final).stat().st_ino
    land(partial_of(final), final)
    assert (final.stat().st_ino, partial_of(final).exists()) == (inode, False)


def test_whole_write_leaves_nothing_else(tmp_path):
    """A small file is replaced without leftovers."""
    for content in (b"one", b"two"):
        write_whole(tmp_path / "d" / "f", content)
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "d").iterdir()] == [("f", b"two")]


def test_manifest_remembers_and_merges(tmp_path):
    """What one writer recorded is still there after another one recorded something else."""
    path = tmp_path / "m.json"
    one, two = Manifest.load(path, "."), Manifest.load(path, ".")
    one.record({"a": RECORD})
    assert two.record({"b": RECORD}).files == {"a": RECORD, "b": RECORD}
    assert Manifest.load(path, ".").files == {"a": RECORD, "b": RECORD}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"version": 1, "folder": ".", "files": {"a": 3}}', b"\xff"]
)
def test_unreadable_manifest_is_an_empty_one(tmp_path, content):
    """A manifest that cannot be read costs a fresh hash, not an error."""
    (tmp_path / "m.json").write_bytes(content)
    assert Manifest.load(tmp_path / "m.json", ".").files == {}


def test_manifest_of_another_folder_does_not_count(tmp_path):
    """Records are about one folder; another one begins without any."""
    Manifest.load(tmp_path / "m.json", "/one").record({"a": RECORD})
    assert Manifest.load(tmp_path / "m.json", "/two").files == {}


def test_lock_tells_who_holds_it(tmp_path):
    """Whoever waits in vain learns which process to wait for."""
    with (
        exclusive(tmp_path, "m", 1.0),
        pytest.raises(DeadlineExceeded, match=f"process {os.getpid()} on .* since"),
        exclusive(tmp_path, "m", 0.0),
    ):
        raise AssertionError
    with exclusive(tmp_path, "m", 0.0):
        assert (tmp_path / "m.holder").is_file()
    assert not (tmp_path / "m.holder").exists()


def test_lock_is_per_model(tmp_path):
    """Work on one model does not wait for work on another."""
    with exclusive(tmp_path, "m", 0.0), exclusive(tmp_path, "n", 0.0):
        assert len(list(tmp_path.glob("*.holder"))) == 2


def test_local_model_is_found_and_hashed_once(tmp_path, hashed):
    """Files under root/name need no source; they are read once and not again until they change."""
    put(tmp_path / "tiny", **MODEL)
    model = ModelStore(tmp_path).installed(card())
    assert (model.source, model.sha256) == ("local", {name: sha(content) for name, content in MODEL.items()})
    ModelStore(tmp_path).installed(card())
    assert sorted(hashed) == sorted(MODEL)
    os.utime(tmp_path / "tiny" / "tokenizer.json", ns=(5, 5))
    assert ModelStore(tmp_path).installed(card()).fingerprint == model.fingerprint
    assert hashed[2:] == ["tokenizer.json"]


def test_fingerprint_follows_the_files(tmp_path):
    """Another content is another fingerprint, wherever the model lies."""
    prints = []
    for i, content in enumerate((b"weights", b"weights", b"Weights")):
        put(tmp_path / str(i) / "tiny", **{**MODEL, "model.safetensors": content})
        prints.append(ModelStore(tmp_path / str(i)).installed(card()).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_state_elsewhere_leaves_the_root_alone(tmp_path):
    """With a state folder of its own, looking at a model writes nothing under the root."""
    put(tmp_path / "root" / "tiny", **MODEL)
    store = ModelStore(tmp_path / "root", state=tmp_path / "state")
    assert store.installed(card()).cache_dir == tmp_path / "state" / "tiny" / "derived"
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["tiny"]
    assert (tmp_path / "state" / "tiny" / "manifest.json").is_file()


def test_folder_source_is_used_in_place(tmp_path):
    """A folder the card names is used where it is, after root/name."""
    put(tmp_path / "elsewhere", **MODEL)
    wanted = card(ModelSource("folder", str(tmp_path / "elsewhere")))
    store = ModelStore(tmp_path / "root")
    assert store.ensure(wanted).folder == store.path(wanted) == tmp_path / "elsewhere"
    put(tmp_path / "root" / "tiny", **MODEL)
    assert store.ensure(wanted).folder == tmp_path / "root" / "tiny"


def test_somebody_elses_files_may_change_but_not_against_a_pin(tmp_path):
    """A folder of one's own may be changed freely, unless the card pins a hash; it is never moved."""
    folder = put(tmp_path / "own", **MODEL)
    store = ModelStore(tmp_path / "root", offline=True)
    source = ModelSource("folder", str(folder))
    store.ensure(card(source))
    put(folder, **{"model.safetensors": b"retrained"})
    assert store.ensure(card(source)).sha256["model.safetensors"] == sha(b"retrained")
    with pytest.raises(ModelNotFound):
        store.ensure(card(source, pinned=sha(b"weights")))
    assert (folder / "model.safetensors").read_bytes() == b"retrained"


def test_package_is_used_without_being_imported(tmp_path, monkeypatch):
    """A package that carries the files is found and used in place; its code does not run."""
    put(tmp_path / "carrier_of_tiny", **{"__init__.py": b"raise SystemExit"})
    put(tmp_path / "carrier_of_tiny" / "model", **MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    source = ModelSource("package", "carrier_of_tiny/model")
    model = ModelStore(tmp_path / "root", offline=True).ensure(card(source))
    assert (model.folder, model.source) == (
        tmp_path / "carrier_of_tiny" / "model",
        "package:carrier_of_tiny/model",
    )
    assert "carrier_of_tiny" not in sys.modules


@pytest.mark.parametrize(
    "location", ["no_such_package/model", "no_such.package/model", "json/nothing", "sys/x"]
)
def test_missing_package_is_no_place(location):
    """A package or a folder in it that is not there is simply no place to look."""
    assert local_folder(ModelSource("package", location)) is None


def test_unasked_body_at_hand_will_do(tmp_path):
    """A model that is there as the less preferred body is used rather than fetched."""
    files = (*card().files, ModelFile("model.onnx", "graph"))
    import onnx
    from onnx import helper

    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", 1, [1])])
    put(
        tmp_path / "tiny",
        **{"tokenizer.json": b"{}", "model.onnx": helper.make_model(graph).SerializeToString()},
    )
    store = ModelStore(tmp_path, offline=True)
    assert store.ensure(card(files=files)).body == "graph"
    with pytest.raises(ModelNotFound):
        store.ensure(card(files=files), body="weights")


def test_own_folder_wins_over_a_preferred_body_elsewhere(tmp_path):
    """What lies under root/name is used, also when another place has the preferred body."""
    files = (*card().files, ModelFile("model.onnx", "graph"))
    wanted = card(ModelSource("folder", str(put(tmp_path / "other", **MODEL))), files=files)
    store = ModelStore(tmp_path / "root")
    assert store.path(wanted) == tmp_path / "other"
    put(tmp_path / "root" / "tiny", **{"tokenizer.json": b"{}", "model.onnx": b""})
    assert store.path(wanted) == tmp_path / "root" / "tiny"


def test_card_without_files_cannot_be_had(tmp_path):
    """A card that lists no files, or not the body asked for, is a configuration error."""
    with pytest.raises(ConfigurationError, match="lists no files"):
        ModelStore(tmp_path).ensure(card(files=()))
    with pytest.raises(ConfigurationError, match="lists no graph"):
        ModelStore(tmp_path).ensure(card(), body="graph")


def test_verify_of_nothing_says_what_is_missing(tmp_path):
    """A model that is nowhere is verified as missing, file by file."""
    report = ModelStore(tmp_path).verify(card())
    assert not report.ok
    assert {str(file) for file in report.files} == {f"{tmp_path / 'tiny' / name}: missing" for name in MODEL}


def test_role_without_a_file_is_corrupt(tmp_path):
    """Asking an installed model for a role it lacks is an error that names the role."""
    put(tmp_path / "tiny", **MODEL)
    with pytest.raises(ModelCorrupt, match="'graph'"):
        ModelStore(tmp_path).installed(card()).file("graph")


def test_linked_model_is_unlinked_not_emptied(tmp_path):
    """Removing a model that is a link to a folder removes the link and leaves the folder."""
    put(tmp_path / "real", **MODEL)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "tiny").symlink_to(tmp_path / "real")
    ModelStore(tmp_path / "root").remove(card())
    assert not (tmp_path / "root" / "tiny").exists()
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == sorted(MODEL)


@pytest.mark.slow
def test_catalogue_is_cheap_to_import():
    """Knowing models and finding them on disk imports no client of any network, nor onnx."""
    code = (
        "import sys; from resilient_ai._models.registry import ModelRegistry; "
        "ModelRegistry('/nonexistent').is_available('qwen3emb'); "
        "print([m for m in ('onnx', 'huggingface_hub', 'resilient_ai._models.download') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_stamp_is_size_and_time(tmp_path):
    """A stamp is what the file system says of size and last change."""
    path = tmp_path / "f"
    path.write_bytes(b"xyz")
    os.utime(path, ns=(1, 2))
    assert stamp_of(path) == (3, 2)
