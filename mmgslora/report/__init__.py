"""What a run leaves for people: table, charts, page and certificates, from its files alone."""
