"""The version of ewq, apart from the package's root so that any module may name it."""

__version__ = "0.1.0"
