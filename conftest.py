"""Root of both test trees: ewq's own plugin, opted into as a user would."""

pytest_plugins = ["ewq.pytest_plugin", "pytester"]
