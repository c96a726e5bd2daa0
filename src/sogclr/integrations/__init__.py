"""Other people's trainers: what of this package needs them, each in a module named after the trainer."""
