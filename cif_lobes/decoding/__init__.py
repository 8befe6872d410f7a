"""Which text do the fires say, and how good is it?

In: CIF vectors [B, U, D] and their number, language models. Out: token ids, error rates and
their intervals.
"""
