"""GGUF: conversion, plans applied through llama.cpp's own quantizer, and reading files back."""
