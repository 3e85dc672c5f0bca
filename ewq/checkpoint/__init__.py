"""Checkpoints as they lie on disk: found, opened, described, never built as a model."""
