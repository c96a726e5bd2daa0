"""What the method claims, measured on small exact problems. Run from the root: `python -m research.bias_floor`. See README.md."""
