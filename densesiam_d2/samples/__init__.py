"""Images and labels for demo, tests and benchmarks without a download: drawn scenes, photographs in Python packages."""
