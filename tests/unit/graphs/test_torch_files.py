"""PyTorch's own files are read as data: nothing in them runs, and what is no tensor is refused by name."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch_kit import named, number, state, tensor, text, write_torch_file, write_zip

from resilient_ai import errors
from resilient_ai._models.graphs import ensure_graph
from resilient_ai._models.graphs.pickles import UnreadablePickle, read_state
from resilient_ai._models.graphs.torch_files import read_torch_file
from tiny_checkpoints import Tiny


def values(rng, *shape, dtype=np.float32):
    return rng.normal(size=shape).astype(dtype)


def test_tensors_come_out_as_they_were_saved(tmp_path):
    """Names, shapes and numbers of float32 and float16 tensors, a scalar among them."""
    rng = np.random.default_rng(0)
    saved = {"a.weight": values(rng, 5, 3), "b": values(rng, 7, dtype=np.float16), "c": values(rng)}
    found = read_torch_file(write_torch_file(tmp_path / "x.bin", saved))
    assert list(found) == list(saved)
    for name, value in saved.items():
        np.testing.assert_array_equal(found[name].load(), value.astype(np.float32))


def test_views_of_one_storage_are_parts_of_it(tmp_path):
    """Tensors that share a storage are told apart by where they begin."""
    numbers = np.arange(12, dtype=np.float32)
    whole = tensor("0", (3, 4))
    part = tensor("0", (2, 4), count=12, offset=4)
    path = write_zip(tmp_path / "x.bin", state({"whole": whole, "part": part}), {"0": numbers.tobytes()})
    found = read_torch_file(path)
    np.testing.assert_array_equal(found["whole"].load(), numbers.reshape(3, 4))
    np.testing.assert_array_equal(found["part"].load(), numbers[4:].reshape(2, 4))


def test_parameters_and_attributes_are_seen_through(tmp_path):
    """A parameter is its tensor; what PyTorch notes on the dictionary itself is left out."""
    wrapped = named("torch._utils", "_rebuild_parameter") + b"(" + tensor("0", (2,)) + b"\x88" + b")tR"
    content = state({"w": wrapped})[:-1] + b"}" + text("_metadata") + b"}sb."
    path = write_zip(tmp_path / "x.bin", content, {"0": np.float32([1, 2]).tobytes()})
    np.testing.assert_array_equal(read_torch_file(path)["w"].load(), [1, 2])


def test_later_protocols_are_read(tmp_path):
    """A pickle of protocol 4 names its functions from the stack and notes values by their order."""
    short = lambda word: b"\x8c" + bytes([len(word)]) + word.encode() + b"\x94"  # noqa: E731
    named4 = lambda module, name: short(module) + short(name) + b"\x93\x94"  # noqa: E731
    stored = (
        b"("
        + short("storage")
        + named4("torch", "BFloat16Storage")
        + short("0")
        + short("cpu")
        + b"K\x02t\x94Q"
    )
    made = (
        named4("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + stored
        + b"K\x00K\x02\x85\x94K\x01\x85\x94\x89)t\x94R"
    )
    content = b"\x80\x04" + b"}\x94" + short("w") + made + b"s."
    bits = np.array([0x3F80, 0xC000], "<u2")
    path = write_zip(tmp_path / "x.bin", content, {"0": bits.tobytes()})
    np.testing.assert_array_equal(read_torch_file(path)["w"].load(), [1.0, -2.0])


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_nothing_is_ever_run(protocol, tmp_path):
    """A pickle that would run a command is refused by the name of what it calls, and runs nothing."""
    mark = tmp_path / "ran"
    content = pickle.dumps({"w": Evil(f"touch {mark}")}, protocol)
    path = write_zip(tmp_path / "x.bin", content, {})
    with pytest.raises(errors.ModelCorrupt, match=rf"x\.bin.*{os.name}.system.*Nothing of it was run"):
        read_torch_file(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"\x80\x02}",
        b"\x80\x02K\x01.",
        b"\x80\x02}X\x01\x00\x00\x00aK\x01s.",
        b"\x80\x02]q\x00.",
        b"\x80\x02}K\x01K\x01s.",
        b"\x80\x02t.",
        b"\x80\x02h\x05.",
        b"\x80\x02Q.",
        b"\x80\x02}" + text("a") + b")Qs.",
        b"\x80\x02" + named("collections", "OrderedDict") + b"K\x01\x85R.",
        b"\x80\x02" + named("torch", "FloatStorage") + b")R.",
        b"\x80\x02" + named("builtins", "eval") + text("1") + b"\x85R.",
        b"\x80\x02(i" + b"os\nsystem\n.",
        b"\x80\x02" + b"\x82\x01.",
        b"\x80\x02N}b.",
        b"\x80\x02K\x01K\x02\x93.",
        b"\x80\x02}" + b"K\x01" + b"\x85" * 200_000 + b"K\x01s.",
        state({"w": named("torch._utils", "_rebuild_tensor_v2") + b")R"}),
        state({"w": tensor("0", (-1,))}),
        state({"w": tensor("0", (2,), strides=(1, 1))}),
        state({"w": tensor("0", (2,), storage="_UntypedStorage")}),
    ],
)
def test_pickles_of_anything_else_are_refused(content):
    """Whatever a pickle says, it is refused by type and never by accident."""
    with pytest.raises(UnreadablePickle):
        read_state(content)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damaged_pickles_do_no_harm(data):
    """Any bytes, and any change to a good pickle, end in tensors or in the one error."""
    good = bytearray(state({"w": tensor("0", (3, 2)), "b": tensor("1", (2,))}))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(good) - 1))
        good[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        found = read_state(bytes(good))
    except UnreadablePickle:
        return
    assert all(isinstance(name, str) and len(each.shape) == len(each.strides) for name, each in found.items())


@pytest.mark.parametrize(
    ("entries", "storages", "said"),
    [
        ({"w": tensor("0", (2, 2))}, {}, "lacks numbers of tensor 'w'"),
        ({"w": tensor("0", (2, 2))}, {"0": bytes(12)}, "lacks numbers of tensor 'w'"),
        ({"w": tensor("0", (2, 2), offset=1)}, {"0": bytes(16)}, "'w' in one piece"),
        ({"w": tensor("0", (2, 3), strides=(1, 2))}, {"0": bytes(24)}, "'w' in one piece"),
        ({"w": tensor("../data.pkl", (2,))}, {"0": bytes(8)}, "lacks numbers"),
    ],
)
def test_tensors_that_do_not_fit_their_numbers_are_named(entries, storages, said, tmp_path):
    """A storage that is missing, short or read across is told by the tensor's name."""
    path = write_zip(tmp_path / "x.bin", state(entries), storages)
    with pytest.raises(errors.ModelCorrupt, match=r"x\.bin") as caught:
        read_torch_file(path)
    assert said in str(caught.value)


def test_compressed_numbers_are_refused(tmp_path):
    """Only what lies in the file as it is can be mapped into memory."""
    path = write_zip(
        tmp_path / "x.bin",
        state({"w": tensor("0", (200,))}),
        {"0": bytes(800)},
        compression=zipfile.ZIP_DEFLATED,
    )
    with pytest.raises(errors.ModelCorrupt, match="compressed"):
        read_torch_file(path)


def test_another_byte_order_is_refused(tmp_path):
    """Numbers of a big-endian machine would be read wrongly."""
    path = write_zip(tmp_path / "x.bin", state({"w": tensor("0", (1,))}), {"0": bytes(4)}, order=b"big")
    with pytest.raises(errors.ModelCorrupt, match="byte order"):
        read_torch_file(path)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.3, 0.6, 0.99, -1])
def test_truncated_files_are_refused(keep, tmp_path):
    """A file cut anywhere is refused."""
    path = write_torch_file(tmp_path / "x.bin", {"w": values(np.random.default_rng(1), 50, 4)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(errors.ModelCorrupt, match=r"x\.bin"):
        read_torch_file(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_archives_do_no_harm(tmp_path_factory, data):
    """Any change to the archive ends in tensors that lie inside the file, or in one of our errors."""
    folder = tmp_path_factory.mktemp("damaged")
    path = write_torch_file(folder / "x.bin", {"w": np.ones((4, 4), np.float32), "b": np.ones(3, np.float16)})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        for each in read_torch_file(path).values():
            assert each.load().shape == each.shape
    except errors.ResilientAIError:
        pass


def test_files_of_the_old_format_are_told(tmp_path):
    """A bare pickle, as PyTorch wrote before zip archives, says what it is not."""
    (tmp_path / "x.bin").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"rest")
    with pytest.raises(errors.ModelCorrupt, match=r"no zip archive as PyTorch has written since 1\.6"):
        read_torch_file(tmp_path / "x.bin")


def test_an_archive_of_something_else_is_told(tmp_path):
    """A zip file without the pickle of one model is refused."""
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(errors.ModelCorrupt, match="not one that PyTorch wrote"):
        read_torch_file(tmp_path / "x.bin")


def as_bin(tiny, folder):
    """A checkpoint in PyTorch's own file instead of safetensors."""
    tiny.write(folder)
    (folder / "model.safetensors").unlink()
    write_torch_file(folder / "pytorch_model.bin", tiny.tensors)
    return folder


def test_the_graph_does_not_depend_on_the_format(tmp_path):
    """The same weights in safetensors and in PyTorch's file give the same bytes."""
    tiny = Tiny()
    folders = tiny.write(tmp_path / "one"), as_bin(tiny, tmp_path / "two")
    options = {"family": "bert", "pooling": "mean", "head": "embedding"}
    first, second = (ensure_graph(folder, tmp_path / "cache", **options) for folder in folders)
    assert first.read_bytes() == second.read_bytes()


def test_safetensors_go_first(tmp_path):
    """Where both are there, the file that needs no care is taken."""
    tiny = Tiny()
    folder = as_bin(tiny, tmp_path / "model")
    save_file(Tiny(seed=1).tensors, folder / "model.safetensors")
    other = Tiny(seed=1).write(tmp_path / "other")
    options = {"family": "bert", "pooling": "mean", "head": "embedding"}
    first, second = (ensure_graph(each, tmp_path / "cache", **options) for each in (folder, other))
    assert first.read_bytes() == second.read_bytes()


def test_the_published_heads_are_read(shared_data):
    """BGE-M3's own files give the numbers that PyTorch reads from them."""
    heads = {
        name: read_torch_file(shared_data / "bge-m3" / f"{name}_linear.pt") for name in ("sparse", "colbert")
    }
    shapes = {name: {key: each.shape for key, each in head.items()} for name, head in heads.items()}
    assert shapes == {
        "sparse": {"weight": (1, 1024), "bias": (1,)},
        "colbert": {"weight": (1024, 1024), "bias": (1024,)},
    }
    # Sums that torch.load gives; `benchmarks/parity_families.py` compares whole heads.
    sums = {
        name: [float(each.load().sum(dtype=np.float64)) for each in head.values()]
        for name, head in heads.items()
    }
    np.testing.assert_allclose(sums["sparse"], [-1.2724169, 0.0451965], atol=1e-5)
    np.testing.assert_allclose(sums["colbert"], [-4.6503844, 0.1981716], atol=1e-3)


def test_huge_pickles_are_not_read(tmp_path):
    """A description far larger than any model needs is refused before it is read."""
    padding = (number(1) + b"0") * 2_000_000
    path = write_zip(tmp_path / "x.bin", b"\x80\x02" + padding + b".", {})
    with pytest.raises(errors.ModelCorrupt, match="not one that PyTorch wrote"):
        read_torch_file(path)
    assert struct.calcsize("<i") == 4
