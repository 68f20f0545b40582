"""What a person sees of a run: progress while it goes, a summary when it ends."""
