"""Programs that embed on a worker, each in processes of its own, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from tokenizer_kit import small_tokenizer

MODEL = "e5-small-v2"
DIMENSION = 384
VOCABULARY = small_tokenizer().get_vocab_size()
PATIENCE = 30.0
"""Nothing here takes so long; it bounds a test that would hang."""
AT_ONCE = 1.0

_MARK = "TEST_OF_HOSTS"
_TEXTS = ["the sun", "rain"]

EMBED = f"import resilient_ai as rai\nprint(*rai.AIService().embed({_TEXTS}).served_by)\n"
"""The shortest program there is: no guard, no end, nothing closed."""

TOOLS = """
import json, os, signal, sys, threading, time
import resilient_ai as rai

ai = rai.AIService()

def say(*words):
    print(*words, flush=True)

def embed(*texts):
    return " ".join(sorted({*ai.embed(texts or ("the sun", "rain"), timeout=20).served_by}))

def device():
    return ai.health().models[0].backends[0]

def worker():
    return device().worker

def until(condition):
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up, ai.health()
        time.sleep(0.01)

def until_back():
    until(lambda: device().why_out == "" and device().share == 1.0)
"""
"""What the longer ones begin with. The cache would answer a text that was seen before, so texts are many."""


def write_model(folder: Path, *, vocabulary: int = VOCABULARY) -> None:
    """Write a tiny model, as the files of one that the catalogue knows by name and leaves unpinned.

    So programs need nothing but their environment to find it. Its vectors are the means of seeded
    random ones, one for each token. `vocabulary` is what its config says.
    """
    (folder / "onnx").mkdir(parents=True)
    (folder / "tokenizer.json").write_text(small_tokenizer().to_str())
    (folder / "config.json").write_text(json.dumps({"vocab_size": vocabulary}))
    table = np.random.default_rng(7).normal(size=(vocabulary, DIMENSION)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "longest"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["rows", "longest", DIMENSION])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "onnx" / "model.onnx"))


@dataclass(frozen=True)
class Done:
    """How a program ended, and what it said."""

    code: int
    out: str
    err: str

    def line(self) -> str:
        """The one line it printed, after an end as it should be."""
        assert (self.code, self.err) == (0, ""), self
        (line,) = self.out.splitlines()
        return line


class Workplace:
    """A folder to start programs in, with a model beside it; knows every process that comes of them."""

    def __init__(self, folder: Path, store: Path):
        self.folder = folder / "here"
        self.temporary = folder / "temporary"
        self.store = store
        self._mark = uuid.uuid4().hex
        self._started: list[subprocess.Popen] = []
        for made in (self.folder, self.temporary):
            made.mkdir()
        self._files = self.files()

    def environment(self, **settings) -> dict[str, str]:
        bare = {name: value for name, value in os.environ.items() if not name.startswith("AI_")}
        return {
            **bare,
            "TMPDIR": str(self.temporary),
            "AI_MODEL_NAME": MODEL,
            "AI_RERANKER_NAME": "late-interaction",
            "AI_MODEL_PATH": str(self.store),
            "AI_OFFLINE": "true",
            "AI_USE_GPU": "simulated",
            "AI_PARALLEL_WORKERS": "1",
            "AI_MAX_LENGTH": "32",
            "AI_RECOVERY_TIME_MS": "1000",
            _MARK: self._mark,
            **settings,
        }

    def start(self, *arguments, stdin=subprocess.DEVNULL, settings=None, python=sys.executable, **options):
        """Start a Python with these arguments, as leader of its group; it is killed in the end."""
        process = subprocess.Popen(
            [python, *map(str, arguments)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(**(settings or {})),
            process_group=0,
            **{"cwd": self.folder, **options},
        )
        self._started.append(process)
        return process

    def run(self, *arguments, stdin=None, **options) -> Done:
        """Run a Python with these arguments to its end."""
        process = self.start(
            *arguments, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE, **options
        )
        return finish(process, stdin)

    def program(self, code: str, **options):
        """Start a longer program, which begins with `TOOLS`."""
        return self.start("-c", TOOLS + code, **options)

    def processes(self) -> list[psutil.Process]:
        """What lives of all that was started here, and of what that has started."""
        return [each for each in psutil.process_iter() if _mark_of(each) == self._mark]

    def workers(self) -> list[psutil.Process]:
        return [each for each in self.processes() if _is_worker(each)]

    def files(self) -> set[Path]:
        """Every file that a program may have left."""
        return {path for root in (self.folder, self.temporary, self.store) for path in root.rglob("*")}

    def until_nothing_is_left(self, within: float = AT_ONCE):
        """Wait for every process to be gone; then there must be no file either."""
        until(lambda: not self.processes(), within, lambda: [each.cmdline() for each in self.processes()])
        assert self.files() == self._files

    def clear(self):
        """Kill whatever is still there."""
        for process in self._started:
            with process:
                process.kill()
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def until(condition, within=PATIENCE, tell=lambda: None):
    """Wait for a condition, and return what it gives."""
    give_up = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < give_up, tell()
        time.sleep(0.01)
    return found


def finish(process, stdin=None) -> Done:
    out, err = process.communicate(stdin, timeout=PATIENCE)
    return Done(process.returncode, out, err)


def next_line(process) -> str:
    """The next line that a program prints; what it says of its end, when it ends instead."""
    line = process.stdout.readline()
    assert line, finish(process)
    return line.rstrip("\n")


def _mark_of(process):
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(_MARK)
    except psutil.Error:
        return None


def _is_worker(process):
    with suppress(psutil.Error):
        return "resilient_ai._workers.child" in process.cmdline()
    return False
