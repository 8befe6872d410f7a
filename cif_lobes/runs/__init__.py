"""What does a command do?

From a yaml to figures. `stages` are what all runs do; every trained thing has its run in the
file of its name, as it has its Brain in `cif_lobes.training`. A run is a function of

hparams_file : str
    The recipe's yaml.
run_opts : dict
    SpeechBrain's run options.
overrides : str or dict
    Settings of the command line.
prepare : callable
    From the loaded yaml: writes the manifests train_csv, valid_csv, test_csv name. Not called
    with `skip_prep`. What trains on text, or on what a recogniser heard, has none.

and returns the figures of what it was scored on.
"""
