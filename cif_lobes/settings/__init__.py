"""What may be set, and what may a folder's yaml name?

Command lines, yamls, and what a program does with mistakes.
"""
