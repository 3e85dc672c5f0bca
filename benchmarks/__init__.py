"""The benchmarks, a test for each task; in a wheel they are ``ewq.benchmarks``."""
