"""Engines that load a checkpoint and give log-probabilities: transformers and llama.cpp."""
