"""python -m cif_lobes.inference: recognise recordings."""

from cif_lobes.inference.recognizer import main
from cif_lobes.settings.program import run_program

run_program(main)
