"""A recogniser whose decoder reads no tokens: one line of yaml, trained and used."""

import json
import pathlib

import pytest
import torch
from conftest import tiny_arguments, train

from cif_lobes.data.manifest import read_manifest
from cif_lobes.inference.recognizer import CIFRecognizer


@pytest.mark.slow
def test_it_learns_and_recognises(corpus, tmp_path):
    """As well as the autoregressive one, which is asked for the same."""
    yaml, *flags = tiny_arguments(corpus, tmp_path, number_of_epochs=24)
    head, decoder, rest = (
        pathlib.Path(yaml)
        .read_text()
        .partition("decoder: !new:cif_lobes.nets.decoder.CIFDecoder\n")
    )
    (tmp_path / "nar.yaml").write_text(
        f"{head}{decoder}    autoregressive: False\n{rest}"
    )
    train([str(tmp_path / "nar.yaml"), *flags])
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["results"]["set2"]["error_rate"] < 30

    files = [u.wav for u in read_manifest(corpus[1])]
    recognizer = CIFRecognizer.from_run(tmp_path / "run", {"beam_size": 3})
    decoder = recognizer.searcher.decoder
    assert not decoder.autoregressive
    for found in recognizer.transcribe(files):
        assert len(found.nbest) == 3
        # All steps are independent: confidences multiply to the score, but for the end.
        said = torch.tensor([token.confidence for token in found.tokens])
        assert found.score <= said.log().sum() + 1e-3
