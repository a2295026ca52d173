"""Reading label files written by any tool: clear mistakes are repaired, unclear ones are errors."""
