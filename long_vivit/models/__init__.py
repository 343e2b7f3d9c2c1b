"""The networks: pure functions of arrays. No I/O, no config objects, no optimiser."""
