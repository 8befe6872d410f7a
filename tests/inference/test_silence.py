"""Silence around speech: a recogniser of tones that was trained with it."""

import pytest
from conftest import ROOT, load_module, tiny_arguments, train

# Points that any kind of silence may cost at most, after a short training.
WORST = {"cif_mini.yaml": 50, "cif_mini_streaming.yaml": 100}


@pytest.mark.slow
@pytest.mark.parametrize("yaml", WORST)
def test_silence_adds_no_text(corpus, tmp_path, yaml, capsys):
    """A network that has seen little of it writes two tokens a second, 250 points more
    with 5 s of silence."""
    arguments = tiny_arguments(
        corpus, tmp_path, number_of_epochs=60, silence_probability=0.5
    )
    arguments[0] = arguments[0].replace("cif_mini.yaml", yaml)
    train(arguments)
    benchmark = load_module(ROOT / "benchmarks/silence.py")
    unit, _, rates = benchmark.measure(tmp_path / "run", corpus[1])
    plain = rates.pop("as it is")
    assert unit == "char" and plain < 30
    assert len(rates) == 27 + 4 and max(rates.values()) < plain + WORST[yaml]
    if "streaming" in yaml:
        _, _, streamed = benchmark.measure(tmp_path / "run", corpus[1], stream=True)
        # Without silence of a second, the stream has heard what the recogniser has.
        assert streamed.pop("as it is") == plain
        assert max(streamed.values()) < plain + WORST[yaml]
    lines = benchmark.table(unit, -19.0, {"as it is": plain, **rates}, "tones")
    assert len([line for line in lines.splitlines() if line[:2] == "| "]) == 10
