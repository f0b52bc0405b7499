"""From a float32 graph to an int8 graph, and the measure of what that costs.

::

    fp32 .onnx --source--> products --sampling, outliers--> ways --rewriting--> int8 .onnx (+ .data)
                                                                   agreement --> QuantizationReport
"""

from resilient_ai._models.quantize.precision import CudaVerdict, Precision, graph_precision, runs_on_cuda
from resilient_ai._models.quantize.quantizing import quantize_graph
from resilient_ai._models.quantize.recipes import RECIPES, Recipe

__all__ = [
    "RECIPES",
    "CudaVerdict",
    "Precision",
    "Recipe",
    "graph_precision",
    "quantize_graph",
    "runs_on_cuda",
]
