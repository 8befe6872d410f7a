"""What lies on disk?

Checkpoints, parameters, the record and the lock of a run folder. What is written is there
whole or not at all, whatever cuts the writing off.
"""
