"""What reports are made of: commands that run once and are logged, drawings, and a page that holds everything."""
