"""Images and labels that need no download, for demo, tests and benchmarks: drawn scenes, photographs of packages."""
