"""Label files: read and check those of any tool, and write regions, counts and names.

Clear mistakes are repaired, unclear ones are errors.
"""

__all__ = ["IGNORE"]

IGNORE = 255  # in label maps, pixels that do not count
