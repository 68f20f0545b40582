"""Getting the tuned model out of a run folder."""
