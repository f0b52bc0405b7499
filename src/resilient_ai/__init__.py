"""Embeddings and rerankings that keep coming when the GPU dies."""

__version__ = "0.1.0"
