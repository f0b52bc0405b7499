"""From a float32 graph to an int8 graph, and the measure of what that costs.

::

    fp32 .onnx --source--> products --knowledge, sampling, outliers--> ways --rewriting-->
        int8 .onnx (+ .data) --agreement--> QuantizationReport
"""

from resilient_ai._models.quantize.agreement import measure
from resilient_ai._models.quantize.precision import CudaVerdict, Precision, graph_precision, runs_on_cuda
from resilient_ai._models.quantize.quantizing import quantize_graph
from resilient_ai._models.quantize.recipes import RECIPES, Recipe
from resilient_ai._models.quantize.report import QuantizationReport
from resilient_ai._models.quantize.sampling import OpenGraph, RunGraph

__all__ = [
    "RECIPES",
    "CudaVerdict",
    "OpenGraph",
    "Precision",
    "QuantizationReport",
    "Recipe",
    "RunGraph",
    "graph_precision",
    "measure",
    "quantize_graph",
    "runs_on_cuda",
]
