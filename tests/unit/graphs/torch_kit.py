"""Writes PyTorch's file format as PyTorch writes it, without PyTorch."""

from __future__ import annotations

import struct
import zipfile

import numpy as np

STORAGES = {np.dtype("<f4"): "FloatStorage", np.dtype("<f2"): "HalfStorage", np.dtype("<i8"): "LongStorage"}


def text(word):
    encoded = word.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value):
    return b"J" + struct.pack("<i", value)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def tensor(key, shape, *, storage="FloatStorage", count=None, offset=0, strides=None):
    """The pickled description of one tensor."""
    count = int(np.prod(shape)) if count is None else count
    if strides is None:
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    stored = (
        b"(" + text("storage") + named("torch", storage) + text(key) + text("cpu") + number(count) + b"tQ"
    )
    tail = b"\x89" + named("collections", "OrderedDict") + b")R"
    return (
        named("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + stored
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + tail
        + b"tR"
    )


def state(entries):
    """The pickle of a state dictionary whose values are pickled already."""
    items = b"".join(text(name) + value for name, value in entries.items())
    return b"\x80\x02" + named("collections", "OrderedDict") + b")R(" + items + b"u."


def write_zip(path, pickle, storages, *, root="archive", order=b"little", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", pickle)
        archive.writestr(f"{root}/byteorder", order)
        for key, content in storages.items():
            archive.writestr(f"{root}/data/{key}", content)
        archive.writestr(f"{root}/version", b"3\n")
    return path


def write_torch_file(path, tensors):
    """A state dictionary of these arrays."""
    entries, storages = {}, {}
    for key, (name, value) in enumerate(tensors.items()):
        entries[name] = tensor(str(key), value.shape, storage=STORAGES[value.dtype])
        storages[str(key)] = np.ascontiguousarray(value).tobytes()
    return write_zip(path, state(entries), storages)
