"""Backbones, heads, towers, encoder files, features."""
