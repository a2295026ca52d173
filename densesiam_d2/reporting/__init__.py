"""The parts of reports: commands that run once and are logged, drawings, and an HTML page that contains everything."""
