"""What is the network?

In: waveforms, features or CIF vectors, padded, and their lengths [B], int64. Out: the same.
No output of an utterance depends on how far it was padded.
"""
