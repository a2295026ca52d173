"""The systems beside which this project is measured; for timing only."""
