"""Backbones, heads, towers, weight files, features."""
