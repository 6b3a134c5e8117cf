"""The memory systems of the literature, a file each; `SYSTEMS` has a line for each."""

SYSTEMS: dict[str, str] = {}
"""Name on the command line -> "module:Class", the module relative to this package."""
