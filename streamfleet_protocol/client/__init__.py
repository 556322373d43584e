"""The client's machine: it accepts tasks, sends them in batches, repairs what Redis loses, and tracks outcomes."""
