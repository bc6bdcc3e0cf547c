"""The evaluation gate: what a candidate must show before it is served."""
