"""On what does it run?

Processes, the precision of float32, lengths where the CPU plans with them and where data is.
"""
