"""Instruments: device and process memory, clocks, loading. Each reads one thing and says what."""
