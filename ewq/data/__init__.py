"""Questions and texts the tasks score."""
