"""The exported upstream keeps S3PRL's contract, where nothing else of ours is there."""

import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from programs import run_python
from tiny_hubert import in_batch, make_signals, write_student_run

from cif_lobes.inference.s3prl_export import export_s3prl

# As S3PRL does: from s3prl/upstream/fithubert/hubconf.py, and with what its Featurizer
# asks for.
CALLER = """
import sys, torch
from upstream.fithubert import hubconf
upstream = getattr(hubconf, "fithubert_local")(None, model_config=None, refresh=False)
upstream.eval()
wavs = torch.load("wavs.pt")
with torch.no_grad():
    features = upstream(wavs)
rates = [upstream.get_downsample_rates(key) for key in features]
torch.save((features, rates), "out.pt")
print(sorted({name.split(".")[0] for name in sys.modules} & {"cif_lobes", "speechbrain"}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The student of a run, and the export of the run."""
    folder = tmp_path_factory.mktemp("upstream")
    student = write_student_run(folder / "run")
    export_s3prl(folder / "run", folder / "exported")
    return student, folder / "exported"


def test_s3prl_reads_the_students_states(exported, tmp_path):
    student, folder = exported
    shutil.copytree(folder, tmp_path / "upstream/fithubert")
    signals = make_signals()
    torch.save(signals, tmp_path / "wavs.pt")
    # Isolated: without PYTHONPATH and the current folder.
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{CALLER}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    features, rates = torch.load(tmp_path / "out.pt")
    assert rates == [320, 320]
    with torch.no_grad():
        expected, x_lengths = student(*in_batch(signals))
    hidden_states = features["hidden_states"]
    assert len(hidden_states) == 3
    assert torch.equal(features["last_hidden_state"], hidden_states[-1])
    for layer, states in enumerate(hidden_states, start=1):
        assert states.shape == (3, int(max(x_lengths)), 32)
        for b, T in enumerate(x_lengths):
            torch.testing.assert_close(states[b, :T], expected[layer][b, :T])
    # S3PRL cuts to round(samples / rate) frames and allows for a difference of four.
    assert abs(hidden_states[0].shape[1] - round(len(signals[0]) / 320)) < 5


def test_the_command(exported, tmp_path):
    _, folder = exported
    script = str(ROOT / "recipes/LibriSpeech/export_s3prl.py")
    run_python([script, folder.parent / "run", tmp_path / "x"])
    names = {"expert.py", "fithubert.py", "hubconf.py", "student.pt"}
    assert {path.name for path in (tmp_path / "x").iterdir()} == names


def test_it_overwrites_nothing(exported):
    _, folder = exported
    with pytest.raises(FileExistsError, match="is not empty: give a new folder"):
        export_s3prl(folder.parent / "run", folder)
