"""`genius-lite doctor`: what a run needs of this machine, what is wrong with it, and the command that mends each."""
