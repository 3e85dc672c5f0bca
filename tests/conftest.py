"""What every test of the package shares."""

import os

# Tiny models gain nothing from threads, and on a busy machine waiting threads cost a lot.
os.environ.setdefault("OMP_NUM_THREADS", "1")
