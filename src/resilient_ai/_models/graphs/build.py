"""Makes the graph of a model folder once, and keeps it.

Beside each cached graph stands a record of what it was made from. A graph is used only while
builder, options, weights and the graph's own bytes are what the record says; else it is made
again. Files appear by rename, the record last, so a crash at any point leaves either a valid
graph or one that is made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from resilient_ai._models.graphs.families import BUILDER_VERSION, FAMILIES, build_graph, source_names
from resilient_ai._models.graphs.options import GraphOptions
from resilient_ai._models.graphs.stamps import FileStamp, Record, still_same
from resilient_ai._models.graphs.writing import INLINE_LIMIT, graph_files, write_graph
from resilient_ai.errors import ConfigurationError, DeadlineExceeded, ModelNotFound, ResilientAIError

__all__ = ["BUILDER_VERSION", "FAMILIES", "build_graph", "ensure_graph"]

_SPARE_DISK = 16 * 2**20
"""What has to be free beyond the weights: the graph without them, its record, the lock."""


def ensure_graph(
    folder: Path,
    cache_dir: Path,
    *,
    family: str,
    pooling: str | None,
    head: str,
    token_outputs: bool | None = None,
    multi: bool = False,
    shared_prefix: bool = False,
    answers: tuple[str, str] = ("yes", "no"),
    precision: str = "fp32",
    device: str = "any",
    inline_limit: int = INLINE_LIMIT,
    lock_timeout: float = 600.0,
) -> Path:
    """The ONNX graph of the model in `folder`, made now unless a valid one is in `cache_dir`.

    Safe to call from many threads and processes at once: one builds, the others wait and share.
    A valid graph in a cache that cannot be written is used as it is.

    Args:
        folder: holds `config.json` and the weights: `model.safetensors`, `pytorch_model.bin`, or an
            index and shards of either.
        cache_dir: where graphs are kept; made when absent. Models may share it.
        family: a key of `FAMILIES`.
        pooling: "cls", "mean", "max" or "last_token"; None with head "score".
        head: "embedding" or "score".
        token_outputs: see `GraphOptions.of`.
        multi: also give the outputs of BGE-M3's further heads.
        shared_prefix: take states that all rows go on from; see `GraphOptions`.
        answers: the words a generative reranker answers with; see `GraphOptions`.
        precision: "fp32", or "fp16" for GPUs.
        device: "any", or "cpu" for a graph that need not run anywhere else.
        inline_limit: bytes of weights beyond which they go to a file of their own.
        lock_timeout: seconds to wait for another process that is building the same graph.

    Returns:
        The graph's path; its weights file, if any, lies beside it.

    Raises:
        ConfigurationError: also when the cache cannot be written.
        ModelCorrupt: when the model's files are not what they should be.
        ModelNotFound: when a file of the model is missing.
        DeadlineExceeded: when the other process did not finish within `lock_timeout`.
    """
    options = GraphOptions.of(
        head,
        pooling,
        token_outputs=token_outputs,
        multi=multi,
        shared_prefix=shared_prefix,
        answers=answers,
        precision=precision,
        device=device,
    )
    entry = _Entry.of(folder.resolve(), cache_dir, family, options, inline_limit)
    if entry.is_valid():
        return entry.path
    with _writing_to(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(entry.beside("lock"), lock_timeout):
            # Another process may have built it while this one waited.
            if not entry.is_valid():
                entry.build()
    return entry.path


@dataclass(frozen=True, slots=True)
class _Entry:
    """One graph of the cache: where it is and what it must be made from."""

    folder: Path
    path: Path
    family: str
    options: GraphOptions
    inline_limit: int

    @classmethod
    def of(
        cls, folder: Path, cache_dir: Path, family: str, options: GraphOptions, inline_limit: int
    ) -> _Entry:
        told = json.dumps([str(folder), family, asdict(options), inline_limit], sort_keys=True)
        tag = hashlib.sha256(told.encode()).hexdigest()[:12]
        name = f"{family}-{options.pooling or options.head}-{options.precision}-{tag}.onnx"
        return cls(folder, cache_dir / name, family, options, inline_limit)

    def beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")

    def is_valid(self) -> bool:
        """Whether the cached graph may be used; keeps the record's times up to date."""
        record = Record.read(self.beside("json"))
        if record is None or (record.builder, record.options) != (BUILDER_VERSION, self._told()):
            return False
        sources = still_same(record.sources, self.folder, self._source_names())
        results = still_same(record.results, self.path.parent, record.results)
        if sources is None or results is None or self.path.name not in results:
            return False
        fresh = replace(record, sources=sources, results=results)
        if fresh != record:
            self._keep(fresh)
        return True

    def build(self) -> None:
        """Make the graph in a folder of its own, then move it into place."""
        sources = self._sources()
        graph = build_graph(self.folder, family=self.family, options=self.options)
        _require_space(self.path.parent, graph.nbytes + _SPARE_DISK)
        partial = self.path.with_name(f".{self.path.name}.partial")
        # The lock is ours, so what lies here was left by a process that died.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            made = partial / self.path.name
            write_graph(graph, made, inline_limit=self.inline_limit)
            files = graph_files(made, graph, inline_limit=self.inline_limit)
            results = {file.name: FileStamp.of(file) for file in files}
            self.beside("json").unlink(missing_ok=True)
            for file in files:
                file.replace(self.path.with_name(file.name))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        Record(BUILDER_VERSION, self._told(), sources, results).write(self.beside("json"))

    def _sources(self) -> dict[str, FileStamp]:
        try:
            return {name: FileStamp.of(self.folder / name) for name in self._source_names()}
        except OSError as exc:
            raise ModelNotFound(
                f"{exc.filename} cannot be read ({exc.strerror}). Fetch the model again."
            ) from exc

    def _source_names(self) -> list[str]:
        return source_names(self.folder, family=self.family, options=self.options)

    def _told(self) -> dict[str, Any]:
        told = {"family": self.family, **asdict(self.options), "inline_limit": self.inline_limit}
        told["answers"] = list(self.options.answers)  # as JSON gives it back
        return told

    def _keep(self, record: Record) -> None:
        try:
            record.write(self.beside("json"))
        except OSError:
            # A cache that cannot be written stays valid; it is only read in full again next time.
            return


def _require_space(folder: Path, needed: int) -> None:
    """Refuse to begin what would fill the disk.

    Raises:
        ConfigurationError: telling what is needed and what is there.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        msg = f"The graph needs {needed / 1e6:,.0f} MB in {folder}, where {free / 1e6:,.0f} MB are free."
        raise ConfigurationError(f"{msg} Free some space, or name another cache folder.")


@contextmanager
def _writing_to(cache_dir: Path) -> Iterator[None]:
    try:
        yield
    except ResilientAIError:
        # Some of our own errors are OSErrors too.
        raise
    except OSError as exc:
        msg = f"Cannot write the graph to {cache_dir} ({exc.strerror or exc}). Make the folder writable"
        msg = f"{msg} (chmod u+w '{cache_dir}'), free some space, or name another cache folder."
        raise ConfigurationError(msg) from exc


@contextmanager
def _locked(path: Path, timeout: float) -> Iterator[None]:
    # Here, for a graph that is built already is used without a lock.
    from filelock import FileLock, Timeout  # noqa: PLC0415

    try:
        lock = FileLock(path, timeout=timeout)
        lock.acquire()
    except Timeout as exc:
        msg = f"Another process has been building {path.stem} for more than {timeout:g} s."
        raise DeadlineExceeded(f"{msg} If none is running, delete {path} and try again.") from exc
    try:
        yield
    finally:
        lock.release()
