"""Unit tests of the sans-IO core, without I/O and without waiting."""
