"""What a run will take, before it does: memory, disk, tokens and time of each stage, and what would make it fit."""
