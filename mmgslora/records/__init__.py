"""What a run leaves to be read: its record, its files, and whether they agree."""
