"""What does a command do?

From a yaml to figures. `stages` are what all runs do; every trained thing has its run in the
file of its name, as it has its Brain in `cif_lobes.training`.
"""
