"""The server's machine: it takes entries, keeps them, runs handlers, settles, and takes over from the dead."""
