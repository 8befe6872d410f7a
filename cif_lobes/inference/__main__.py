"""python -m cif_lobes.inference: recognise recordings."""

from cif_lobes.inference.command import program

program()
