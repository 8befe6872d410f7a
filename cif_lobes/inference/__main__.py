"""python -m cif_lobes.inference: recognise recordings."""

from cif_lobes.inference.recognizer import program

program()
