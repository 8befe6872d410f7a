"""Compute what a teacher says: cif-extract, see `cif_lobes.commands.extract`."""

from cif_lobes.commands.extract import program

if __name__ == "__main__":
    program()
