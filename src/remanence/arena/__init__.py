"""Memories measured: how long what was told is still answered, and how they do beside search in text.

Knows the core, and is not known by it.
"""
