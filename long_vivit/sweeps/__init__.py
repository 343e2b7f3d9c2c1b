"""Sweeps: grids of runs, what each variant takes, their rows, tables and figures."""
