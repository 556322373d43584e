"""The server machine, part by part, without I/O."""
