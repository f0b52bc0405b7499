"""Graphs on OpenVINO's CPU kernels, which know bfloat16, behind what `Session` offers.

OpenVINO's own habits that are switched off or checked here: it pins its threads to cores, and where
other runtimes refuse a batch (ids beyond the vocabulary, matrices that do not fit, an input left out)
it answers with zeros, or with the numbers of the batch before.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from numpy.typing import NDArray

from resilient_ai._inference.openvino_runtime import load_openvino
from resilient_ai.errors import DeviceFailed, DeviceUnavailable, InvalidInput, ModelCorrupt, ModelNotFound

__all__ = ["OpenVinoPrecision", "OpenVinoSession"]

OpenVinoPrecision = Literal["f32", "bf16"]

Shape = tuple[int | str | None, ...]

_IDS: Final = "input_ids"
_KEPT_REQUESTS: Final = 4
"""Each keeps the memory of its last inputs and outputs."""
_SHAPES_KEPT: Final = 64
"""Kernels that are kept prepared; without a bound they grow by hundreds of megabytes."""

_TYPES: Final[Mapping[str, str]] = {
    "i64": "tensor(int64)",
    "i32": "tensor(int32)",
    "f32": "tensor(float)",
    "f16": "tensor(float16)",
    "boolean": "tensor(bool)",
}


class OpenVinoSession:
    """One graph compiled for this CPU. `run` is thread-safe and releases the GIL while the graph runs.

    `threads` is the number of threads one run may use. `precision` is what products of matrices are
    computed in where the graph has float32 ones; inputs and outputs stay as they are.

    Raises:
        ModelNotFound: The graph is not there.
        ModelCorrupt: OpenVINO cannot load it; it may lack an operator of it.
        ConfigurationError: OpenVINO is not there.
    """

    def __init__(self, graph: Path, *, threads: int, precision: OpenVinoPrecision = "f32") -> None:
        if not graph.is_file():
            raise ModelNotFound(f"the graph {graph} is not there; fetch the model again")
        self.precision = precision
        self._core: Any = load_openvino().Core()
        model = self._read(graph)
        self._compiled: Any = self._compile(model, graph, threads)
        self._lock = threading.Lock()
        self._idle: list[Any] = []  # guarded by `_lock`: infer requests that nobody uses
        _sessions.add(self)
        self._vocabulary = _vocabulary(model)
        inputs = {port.any_name: port for port in model.inputs}
        self.inputs: Mapping[str, str] = {name: _type(port) for name, port in inputs.items()}
        self.input_shapes: Mapping[str, Shape] = {name: _shape(port) for name, port in inputs.items()}
        self._places = _output_names(model)
        self.outputs: Mapping[str, Shape] = {
            name: _shape(model.outputs[place]) for name, place in self._places.items()
        }

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph once; return the named outputs in order, in memory of their own.

        Raises:
            InvalidInput: The feeds are not what the graph takes, or an output is not there.
            DeviceFailed: Everything that goes wrong after that, with OpenVINO's own text.
            DeviceUnavailable: The session was closed, or its process forked.
        """
        self._check(outputs, feeds)
        request = self._borrow()
        try:
            request.infer(dict(feeds), share_outputs=True)
            found = [request.get_output_tensor(self._places[name]).data.copy() for name in outputs]
        except Exception as exc:  # it has one class for everything
            raise DeviceFailed(str(exc).strip()) from exc  # and the request is not used again
        self._give_back(request)
        return found

    def close(self) -> None:
        """Let go of the graph; a run that is under way finishes first. May be called twice."""
        with self._lock:
            self._compiled = self._core = None
            self._idle.clear()

    def _read(self, graph: Path) -> Any:
        try:
            return self._core.read_model(str(graph))
        except Exception as exc:  # it has one class for everything
            raise _load_error(exc, graph) from exc

    def _compile(self, model: Any, graph: Path, threads: int) -> Any:
        options = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # Two processes that pin their threads share the same few cores and leave the others idle.
            "ENABLE_CPU_PINNING": False,
            "CPU_RUNTIME_CACHE_CAPACITY": _SHAPES_KEPT,
            # Scales over groups of activations would be a precision that nobody asked for.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        try:
            return self._core.compile_model(model, "CPU", options)
        except Exception as exc:  # it has one class for everything
            raise _load_error(exc, graph) from exc

    def _borrow(self) -> Any:
        with self._lock:
            if self._compiled is None:
                raise DeviceUnavailable(
                    "this session was closed, or its process forked; load the model again"
                )
            if self._idle:
                return self._idle.pop()
            compiled = self._compiled
        return compiled.create_infer_request()

    def _give_back(self, request: Any) -> None:
        with self._lock:
            if self._compiled is not None and len(self._idle) < _KEPT_REQUESTS:
                self._idle.append(request)

    def _check(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> None:
        if missing := [name for name in outputs if name not in self._places]:
            raise InvalidInput(f"this graph has no output {missing[0]!r}; it has {', '.join(self._places)}")
        if feeds.keys() != self.inputs.keys():
            raise InvalidInput(f"this graph takes {', '.join(self.inputs)}, and was given {', '.join(feeds)}")
        matrices = set()
        for name, array in feeds.items():
            if not _fits(array.shape, self.input_shapes[name]):
                raise InvalidInput(
                    f"the graph refused the batch: {name} has the shape {array.shape}, not one of "
                    f"{self.input_shapes[name]}"
                )
            if array.ndim == 2:  # noqa: PLR2004 - rows x longest
                matrices.add(array.shape)
        if len(matrices) > 1:
            raise InvalidInput(f"the graph refused the batch: matrices of shapes {sorted(matrices)}")
        self._check_ids(feeds.get(_IDS))

    def _check_ids(self, ids: NDArray[Any] | None) -> None:
        if ids is None or self._vocabulary is None or not ids.size:
            return
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < -self._vocabulary or highest >= self._vocabulary:
            raise InvalidInput(
                f"the graph refused the batch: token ids from {lowest} to {highest}, where it knows "
                f"{self._vocabulary}"
            )

    def _abandon(self) -> None:
        """Give everything up without freeing it, in the child of a fork.

        Its threads did not come along, and its destructors would wait for them, or abort.
        """
        for part in (*self._idle, self._compiled, self._core):
            if part is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(part))
        self._idle = []
        self._compiled = self._core = None
        self._lock = threading.Lock()  # a thread that is not there any more may have held it


_sessions: weakref.WeakSet[OpenVinoSession] = weakref.WeakSet()


def _abandon_sessions() -> None:
    for session in list(_sessions):
        session._abandon()  # noqa: SLF001 - its own class, after a fork


os.register_at_fork(after_in_child=_abandon_sessions)


def _load_error(error: Exception, graph: Path) -> ModelCorrupt:
    return ModelCorrupt(f"OpenVINO cannot load the graph {graph}: {str(error).strip()}")


def _type(port: Any) -> str:
    kind = str(port.element_type.get_type_name())
    return _TYPES.get(kind, kind)


def _shape(port: Any) -> Shape:
    return tuple(size.get_length() if size.is_static else None for size in port.partial_shape)


def _fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        size in (None, given) for given, size in zip(shape, wanted, strict=True)
    )


def _output_names(model: Any) -> dict[str, int]:
    """The graph's outputs by name, and their places.

    An output may go by the names of inner values too; the node that ends the graph there knows which
    name was declared.
    """
    names = {}
    for place, port in enumerate(model.outputs):
        declared = port.get_node().get_friendly_name().removesuffix("/sink_port_0")
        names[declared if declared in port.get_names() else port.any_name] = place
    return names


def _vocabulary(model: Any) -> int | None:
    """How many rows the table has that ids are looked up in; None where that cannot be told."""
    sizes = []
    readers = [
        reader for port in model.inputs if port.any_name == _IDS for reader in port.get_target_inputs()
    ]
    while readers:
        reader = readers.pop()
        node = reader.get_node()
        if node.get_type_name() == "Convert":
            readers.extend(node.output(0).get_target_inputs())
        elif node.get_type_name() == "Gather" and reader.get_index() == 1:
            table = node.input_value(0).get_partial_shape()
            if table.is_static:
                sizes.append(table[0].get_length())
    return min(sizes, default=None)
