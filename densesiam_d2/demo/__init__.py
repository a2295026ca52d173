"""The demo: all steps from unlabelled images to a report, on data that needs no download."""
