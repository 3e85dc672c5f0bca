"""What stays on disk: the journal of a run, stored runs, and the machine they come from."""
