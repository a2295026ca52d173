"""What this project's speed is measured against: peers, floors, goals and gates. ``python -m benchmarks --help``."""
