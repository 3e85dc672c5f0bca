"""GGUF: conversion, plans applied through llama.cpp's own quantizer, and reading files back."""

from ewq.gguf.cache import cached_gguf
from ewq.gguf.export import export_gguf
from ewq.gguf.report import ExportReport

__all__ = ["ExportReport", "cached_gguf", "export_gguf"]
