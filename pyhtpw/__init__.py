"""Neural networks whose weights are generated at boot, equal to the bit on every machine."""
