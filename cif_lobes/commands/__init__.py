"""What is typed?

The command lines of the installed package: `cif-evaluate` and `cif-extract`, which a checkout
has as evaluate.py and extract_teacher.py. `cif-transcribe` is in `cif_lobes.inference`.
"""
