"""Exchange of steering vectors with other tools: reading theirs, writing llama.cpp's, describing ours."""

from __future__ import annotations

from ace_core.exchange.gguf_export import GGUFExport, export_gguf
from ace_core.exchange.imported import read_vectors
from ace_core.exchange.vector_card import vector_card
from ace_core.exchange.vectors import ImportedVectors

__all__ = ["GGUFExport", "ImportedVectors", "export_gguf", "read_vectors", "vector_card"]
