"""Libraries that a library needs are read from it, without loading it."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from resilient_ai._inference.libraries import missing_libraries, needed_libraries

LOAD, DYNAMIC = 1, 2
NEEDED, STRINGS, STRINGS_SIZE, RUNPATH = 1, 5, 10, 29
ADDRESS = 0x10000


def write_library(path, *names, magic=b"\x7fELF\x02\x01", runpath=None, strings_at=ADDRESS):
    """A library that is nothing but its list of needs."""
    table = b"\0" + b"".join(name.encode() + b"\0" for name in (*names, runpath or ""))
    tags, at = [], 1
    for name in names:
        tags.append((NEEDED, at))
        at += len(name) + 1
    if runpath:
        tags.append((RUNPATH, at))
    tags += [(STRINGS, strings_at), (STRINGS_SIZE, len(table)), (0, 0)]
    dynamic = b"".join(struct.pack("<qQ", *tag) for tag in tags)
    start = 64 + 2 * 56
    header = magic.ljust(16, b"\0") + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    size = len(table) + len(dynamic)
    segments = struct.pack("<IIQQQQQQ", LOAD, 4, start, ADDRESS, ADDRESS, size, size, 1)
    segments += struct.pack("<IIQQQQQQ", DYNAMIC, 4, start + len(table), 0, 0, len(dynamic), len(dynamic), 8)
    path.write_bytes(header + segments + table + dynamic)
    return path


def absent(*names):
    """A loader of libraries that lacks some."""
    loaded = []

    def load(name):
        if name in names:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        loaded.append(name)

    return load, loaded


def test_needs(tmp_path):
    """The names come in the order of the library."""
    library = write_library(tmp_path / "lib.so", "libone.so.1", "libtwo.so.2")
    assert needed_libraries(library) == ("libone.so.1", "libtwo.so.2")


def test_missing(tmp_path):
    """What cannot be loaded is named with the linker's reason, the rest is loaded."""
    library = write_library(tmp_path / "lib.so", "libone.so.1", "libtwo.so.2")
    load, loaded = absent("libtwo.so.2")
    missing = missing_libraries(library, load=load)
    assert missing == {
        "libtwo.so.2": "libtwo.so.2: cannot open shared object file: No such file or directory"
    }
    assert loaded == ["libone.so.1"]


@pytest.mark.parametrize("how", ["32 bit", "runpath", "elsewhere", "text", "empty"])
def test_what_cannot_be_told(tmp_path, how):
    """Nothing is said to be missing where the list cannot be read, or the library searches for itself."""
    path, name = tmp_path / "lib.so", "libone.so.1"
    if how == "32 bit":
        write_library(path, name, magic=b"\x7fELF\x01\x01")
    elif how == "runpath":
        write_library(path, name, runpath="$ORIGIN")
    elif how == "elsewhere":
        write_library(path, name, strings_at=1 << 40)
    else:
        path.write_bytes(b"no library at all, but long enough to be one" * 9 if how == "text" else b"")
    load, _ = absent(name)
    assert missing_libraries(path, load=load) == {}
    assert missing_libraries(tmp_path / "nowhere.so", load=load) == {}


@pytest.mark.parametrize("kept", [0.1, 0.4, 0.6, 0.9])
def test_a_torn_library(tmp_path, kept):
    """Nor where the file was cut off."""
    whole = write_library(tmp_path / "lib.so", "libone.so.1", "libtwo.so.2").read_bytes()
    (tmp_path / "torn.so").write_bytes(whole[: int(len(whole) * kept)])
    assert needed_libraries(tmp_path / "torn.so") == ()


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_a_real_library():
    """A library of this machine needs the C library, as its own tools say, and all it needs is there."""
    capi = Path(pytest.importorskip("onnxruntime").__file__).parent / "capi"
    library = capi / "libonnxruntime_providers_shared.so"
    needed = needed_libraries(library)
    assert any(name.startswith("libc.so") for name in needed)
    assert missing_libraries(library) == {}
    done = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        assert all(name in done.stdout for name in needed)
