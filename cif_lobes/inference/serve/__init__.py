"""What listens to a network: a page for people, and POST /transcribe for programs.

One recogniser, one thread, one queue (`worker`), whoever asks.
"""
