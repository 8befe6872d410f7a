"""What is it trained on?

Pure functions. In: what a network says and what it should say, with masks or lengths. Out:
the sum over real tokens, frames or utterances, in float32: who trains divides by their
number over all processes.
"""
