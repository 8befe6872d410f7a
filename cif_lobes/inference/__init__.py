"""How is a trained recogniser used?

In: recordings, of any length, and a run or an export of one. Out: transcripts with times.
Nothing here trains.
"""
