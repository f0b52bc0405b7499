"""The roofline: what ONNX Runtime makes of one large float32 product, over and over."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

__all__ = ["FLOP", "Gemm"]

_SIZE, _TIMES = 2048, 24
FLOP = 2.0 * _SIZE**3 * _TIMES
"""Of one `multiply`."""


class Gemm:
    """One product of square matrices, its right side constant as a model's weights are."""

    def __init__(self, *, threads: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self._left = random.standard_normal((_SIZE, _SIZE), np.float32)
        right = onnx.numpy_helper.from_array(random.standard_normal((_SIZE, _SIZE), np.float32), "right")
        shape = [_SIZE, _SIZE]
        kind = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["left", "right"], ["out"])],
            "gemm",
            [onnx.helper.make_tensor_value_info("left", kind, shape)],
            [onnx.helper.make_tensor_value_info("out", kind, shape)],
            [right],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def multiply(self) -> None:
        for _ in range(_TIMES):
            self._session.run(["out"], {"left": self._left})
