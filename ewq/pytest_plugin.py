"""The pytest plugin; opt in with ``pytest_plugins = ["ewq.pytest_plugin"]``."""
