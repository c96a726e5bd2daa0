"""How good an encoder is: scores of arrays."""
