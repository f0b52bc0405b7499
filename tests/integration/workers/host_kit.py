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
AT_ONCE = 2.0

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
    return " ".join(sorted({*ai.embed(texts or ["the sun", "rain"], timeout=20).served_by}))

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
    until(lambda: embed() == "simulated")

def tell_when_under_way():
    def watch():
        until(lambda: device().breaker.in_flight)
        say("under way")
    threading.Thread(target=watch, daemon=True).start()
"""
"""What the longer ones begin with."""

ASKS = """
ai.load()
tell_when_under_way()
say(embed())
time.sleep(60)
"""
"""One with a batch under way, which tells so."""


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
        [
            helper.make_tensor_value_info(
                "last_hidden_state", TensorProto.FLOAT, ["rows", "longest", DIMENSION]
            )
        ],
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

    @property
    def lines(self) -> list[str]:
        """What it printed, after an end as it should be."""
        assert self.code == 0, self
        return self.out.splitlines()


class Workplace:
    """A folder to start programs in, with a model beside it; knows every process that comes of them."""

    def __init__(self, folder: Path, store: Path):
        self.folder = folder / "here"
        self.store = store
        self.temporary, self._home = folder / "temporary", folder / "home"
        for made in (self.folder, self.temporary, self._home):
            made.mkdir()
        self._mark = uuid.uuid4().hex
        self._started: list[subprocess.Popen] = []
        self._files = self.files()

    def environment(self, **settings) -> dict[str, str]:
        """What every program finds: this model, this folder for what is temporary, a worker on the CPU."""
        bare = {name: value for name, value in os.environ.items() if not name.startswith("AI_")}
        return {
            **bare,
            "HOME": str(self._home),
            "TMPDIR": str(self.temporary),
            "PYTHONDONTWRITEBYTECODE": "1",
            "AI_MODEL_NAME": MODEL,
            "AI_RERANKER_NAME": "late-interaction",
            "AI_MODEL_PATH": str(self.store),
            "AI_OFFLINE": "true",
            "AI_USE_GPU": "simulated",
            "AI_PARALLEL_WORKERS": "1",
            "AI_MAX_LENGTH": "32",
            "AI_CACHE_SIZE": "0",
            "AI_VERIFY": "off",
            "AI_RECOVERY_TIME_MS": "200",
            _MARK: self._mark,
            **settings,
        }

    def write(self, name: str, text: str) -> Path:
        """A file that is the test's own."""
        path = self.folder / name
        path.write_text(text)
        self._files.add(path)
        return path

    def start(self, *arguments, stdin=subprocess.DEVNULL, settings=None, **options) -> subprocess.Popen:
        """Start Python with these arguments, as the leader of a group."""
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environment(**(settings or {})),
            process_group=0,
            **options,
        )
        self._started.append(process)
        return process

    def run(self, *arguments, stdin=None, **options) -> Done:
        """Run Python with these arguments to its end."""
        source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        return finish(self.start(*arguments, stdin=source, **options), stdin)

    def program(self, code: str, *, stdin=subprocess.DEVNULL, **settings) -> subprocess.Popen:
        """Start a longer program, which begins with `TOOLS`."""
        return self.start("-c", TOOLS + code, stdin=stdin, settings=settings)

    def processes(self) -> list[psutil.Process]:
        """What lives of all that was started here, and of what that has started."""
        return [each for each in psutil.process_iter() if _mark_of(each) == self._mark]

    def workers(self) -> list[psutil.Process]:
        return [each for each in self.processes() if _is_worker(each)]

    def files(self) -> set[Path]:
        """Every file that a program may have left."""
        roots = (self.folder, self.temporary, self.store)
        return {path for root in roots for path in root.rglob("*")}

    def shared_memory(self) -> set[str]:
        """What of the machine's shared memory the living processes have open or mapped."""
        return {
            path for each in self.processes() for path in _open_paths(each) if path.startswith("/dev/shm/")
        }

    def until_nothing_is_left(self, within: float = AT_ONCE):
        """Wait for every process to be gone; then there must be no new file either."""
        until(
            lambda: not self.processes(), within, tell=lambda: [each.cmdline() for each in self.processes()]
        )
        assert not (left := self.files() - self._files), left

    def clear(self):
        """Kill whatever is still there."""
        for process in self._started:
            with process:
                process.kill()
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def until(condition, within=PATIENCE, *, tell=lambda: None):
    """Wait for a condition, and return what it gives."""
    give_up = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < give_up, tell()
        time.sleep(0.02)
    return found


def finish(process, stdin=None, *, within=PATIENCE) -> Done:
    """Wait for a program's end."""
    out, err = process.communicate(stdin, timeout=within)
    return Done(process.returncode, out, err)


def next_line(process) -> str:
    """The next line that a program prints."""
    line = process.stdout.readline()
    assert line, finish(process)
    return line.rstrip("\n")


def faults(kind: str, *, call: int, **fields) -> dict[str, str]:
    """Settings by which one batch suffers a fault, or one start of the worker."""
    rule = {"what": {"kind": kind, **fields}, "when": {"calls": [call]}}
    return {"AI_ALLOW_FAULT_INJECTION": "true", "AI_FAULT_PLAN": json.dumps({"rules": [rule]})}


AFTER_PROOF = 3
"""The first batch that is a user's: before it, two canaries prove the device."""


def _mark_of(process):
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(_MARK)
    except psutil.Error:  # it has just ended, or is none of ours
        return None


def _is_worker(process):
    with suppress(psutil.Error):
        return "resilient_ai._workers.child" in process.cmdline()
    return False


def _open_paths(process):
    with suppress(psutil.Error):
        return {each.path for each in [*process.open_files(), *process.memory_maps()]}
    return set()
