"""Ask for what a recipe needs, and write it: `genius-lite init`."""
