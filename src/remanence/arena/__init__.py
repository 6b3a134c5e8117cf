"""Memories measured: how long what was told is still answered. Knows the core, and is not known by it."""
