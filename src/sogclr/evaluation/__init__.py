"""How good an encoder is: kNN, linear probes, and label-free health."""
