"""What is an utterance, and is it usable?

In: csv files, audio, transcripts. Out: checked utterances, token ids, batches by duration.
"""
