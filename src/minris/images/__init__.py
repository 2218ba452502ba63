"""Which images are where, and whether they are safe."""
