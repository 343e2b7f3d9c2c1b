"""Data set builders, a folder each: `python -m long_vivit.build_data NAME` builds one."""
