"""What a run finds out, typed: every table, tracker and page is made of it."""
