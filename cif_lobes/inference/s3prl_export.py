"""A FitHuBERT student as an upstream of S3PRL, the toolkit of SUPERB.

S3PRL (https://github.com/s3prl/s3prl) finds an upstream by the functions in a hubconf.py.
The folder written here has one, the few files behind it, and the parameters; it needs
torch alone, neither this package nor SpeechBrain.
"""

import shutil

import torch

from cif_lobes.nets import fithubert, s3prl_expert
from cif_lobes.nets.frozen_student import read_student
from cif_lobes.storage.atomic_files import new_folder

HUBCONF = '''\
"""FitHuBERT. Copy this folder to s3prl/upstream/fithubert, add to s3prl/hub.py

from s3prl.upstream.fithubert.hubconf import *

and run, for example, run_downstream.py -m train -u fithubert_local -d asr ...
Another student of the same code: -k its/student.pt
"""

from .expert import UpstreamExpert as _UpstreamExpert


def fithubert_local(ckpt=None, *args, **kwargs):
    return _UpstreamExpert(ckpt, *args, **kwargs)
'''


def export_s3prl(run_folder, out_folder):
    """Write the student of a run into a folder of its own.

    Arguments
    ---------
    run_folder : str
        Output folder of a train_fithubert.py. The checkpoint with the lowest loss on
        the validation set is taken.
    out_folder : str
        Made; must be empty if it exists.

    Raises
    ------
    FileNotFoundError, ValueError
        As `cif_lobes.nets.frozen_student.read_student`.
    FileExistsError
        If there is something in out_folder.
    """
    settings, parameters = read_student(run_folder)
    saved = {"settings": settings, "parameters": parameters}
    with new_folder(out_folder) as folder:
        torch.save(saved, folder / "student.pt")
        shutil.copyfile(fithubert.__file__, folder / "fithubert.py")
        shutil.copyfile(s3prl_expert.__file__, folder / "expert.py")
        (folder / "hubconf.py").write_text(HUBCONF, encoding="utf-8")
