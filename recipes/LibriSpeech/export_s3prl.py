"""Write the student of a FitHuBERT run as an upstream of S3PRL, the toolkit of SUPERB.

python recipes/LibriSpeech/export_s3prl.py results/LibriSpeech/fithubert_100h/1986 fithubert
"""

import argparse

from cif_lobes.settings.program import run_program


def main():
    """Write what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="output_folder of train_fithubert.py")
    parser.add_argument("out", help="new folder for the upstream")
    given = parser.parse_args()

    # Here, so that --help needs no torch.
    from cif_lobes.inference.s3prl_export import export_s3prl

    export_s3prl(given.run, given.out)
    print(f"{given.out}: how to use it is said in its hubconf.py")


if __name__ == "__main__":
    run_program(main)
