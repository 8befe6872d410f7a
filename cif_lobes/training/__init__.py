"""How does it learn?

A Brain per trained thing, all of them `brain.TrainingBrain`, and what they share: schedule,
augmentation, what a loss adds up to, what is done with one that is not finite.
"""
