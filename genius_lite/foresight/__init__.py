"""Stepwise foresight search and the preference pairs it gives (Genius, arXiv 2504.08672, Eq. 1 to 6)."""
