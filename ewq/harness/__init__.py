"""The benchmark harness behind the pytest plugin: options in, measured and stored records out."""
