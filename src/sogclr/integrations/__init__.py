"""Adapters for the trainers that people already have, where plain use of the losses is not enough."""
