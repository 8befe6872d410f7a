"""What does a teacher say?

Frozen models, always in eval mode, never among the modules of a Brain. In: texts and their
tokens, or audio. Out: states of each token or frame.
"""
