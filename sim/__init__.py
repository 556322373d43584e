"""The deterministic simulator: models of the world, faults, and checks on what happens."""
