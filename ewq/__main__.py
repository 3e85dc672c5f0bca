"""``python -m ewq`` is the same program as the ``ewq`` command."""

from ewq.cli import main

if __name__ == "__main__":
    main()
