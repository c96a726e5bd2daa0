"""What decides a run: its options, the table of methods, TOML files. No torch in here."""
