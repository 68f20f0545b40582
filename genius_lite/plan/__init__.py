"""What a run would take, before it does: memory and disk by arithmetic, time by a rehearsal of the run itself."""
