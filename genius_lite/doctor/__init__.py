"""What this machine has for a run, and the command that mends what is wrong: `genius-lite doctor`."""
