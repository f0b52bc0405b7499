"""From weights to the graph that runs fastest, without a training framework.

::

    config.json + weights --checkpoint--> family module --Graph--> writing --> .onnx (+ .data)
                                          (bert, qwen3, ...)       build keeps and validates them
"""

from resilient_ai._models.graphs.build import BUILDER_VERSION, FAMILIES, build_graph, ensure_graph
from resilient_ai._models.graphs.describe import GraphDescription, describe_graph
from resilient_ai._models.graphs.identify import Identity, identify
from resilient_ai._models.graphs.options import GraphOptions

__all__ = [
    "BUILDER_VERSION",
    "FAMILIES",
    "GraphDescription",
    "GraphOptions",
    "Identity",
    "build_graph",
    "describe_graph",
    "ensure_graph",
    "identify",
]
