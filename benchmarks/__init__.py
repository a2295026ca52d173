"""What this project's speed is measured against: floors, peers and goals. ``python -m benchmarks --help``."""
