"""Score or export a trained run: cif-evaluate, see `cif_lobes.commands.evaluate`."""

from cif_lobes.commands.evaluate import program

if __name__ == "__main__":
    program()
