"""The client's machine, scripted."""
