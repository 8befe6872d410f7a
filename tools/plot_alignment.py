"""Show when CIF fires each token of an utterance, over its spectrogram.

python tools/plot_alignment.py results/AISHELL-1/cif/1986 --utterance BAC009S0764W0121
python tools/plot_alignment.py results/AISHELL-1/cif/1986 --audio my.wav --start 30 --end 40

Writes a picture into the run folder and prints the weights, the transcript and, for an
utterance of a test set, its errors.
"""

import argparse
import pathlib

from cif_lobes.settings.program import run_program

LONGEST = 60  # seconds of a picture: attention over more takes gigabytes


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="output_folder of a training run")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--utterance", help="ID in the set (default: its first)")
    what.add_argument("--audio", help="recording to draw instead")
    parser.add_argument("--split", help="valid, or a test set (default: the first)")
    add = parser.add_argument
    add("--start", type=float, default=0.0, help="of the stretch to draw, in seconds")
    add("--end", type=float, help=f"its end, at most {LONGEST} s behind its start")
    parser.add_argument("--out", help="picture; png, pdf or svg (default: in the run)")
    return parser.parse_args()


def main(arguments):
    """Load the run, recognise, draw, print."""
    # Here, so that --help and a misspelt option need no torch.
    from cif_lobes.data.batches import read_audio
    from cif_lobes.runs.cif import load_run

    brain, hparams = load_run(arguments.run)
    brain.on_evaluate_start()
    brain.modules.eval()
    if arguments.audio:
        signal = read_audio(arguments.audio, hparams["sample_rate"])
        name, reference = pathlib.Path(arguments.audio).stem, None
    else:
        item = find_utterance(arguments, hparams)
        name, signal, reference = item["id"], item["signal"], item["text"]
    if (arguments.start, arguments.end) != (0.0, None):
        reference = None  # of the whole
    signal = cut_out(signal, hparams["sample_rate"], arguments.start, arguments.end)
    path = arguments.out or pathlib.Path(arguments.run, f"fires_{name}.png")
    show(brain, name, signal, reference, path)


def cut_out(signal, sample_rate, start, end):
    """The samples between two times in seconds."""
    seconds = len(signal) / sample_rate
    end = seconds if end is None else end
    if not 0 <= start < min(end, seconds):
        raise SystemExit(
            f"--start {start:g} --end {end:g}: nothing lies between, the recording has "
            f"{seconds:.1f} s"
        )
    if min(end, seconds) - start > LONGEST:
        raise SystemExit(
            f"{min(end, seconds) - start:.1f} s are too much for a picture, at most "
            f"{LONGEST}: draw a stretch with --start {start:g} --end {start + 10:g}"
        )
    return signal[round(start * sample_rate) : round(end * sample_rate)]


def find_utterance(arguments, hparams):
    """The item of a data set that the arguments name."""
    from cif_lobes.data.batches import make_dataset
    from cif_lobes.runs.stages import manifest_paths

    manifests = manifest_paths(hparams)
    tests = [name for name in manifests if name not in ("train", "valid")]
    split = arguments.split or (*tests, "valid")[0]  # a run may have no test set
    if split not in manifests:
        raise SystemExit(
            f"{arguments.run} has no set {split!r}; it has {', '.join(manifests)}. "
            "Draw another recording with --audio FILE"
        )
    dataset = make_dataset(
        manifests[split], hparams["tokenizer"], hparams["sample_rate"]
    )
    ids = dataset.data_ids
    utterance = arguments.utterance or ids[0]
    if utterance not in ids:
        raise SystemExit(
            f"{manifests[split]} has no utterance {utterance!r}; its first is {ids[0]}. "
            f"Other sets: --split {' or '.join(manifests)}"
        )
    return dataset[ids.index(utterance)]


def show(brain, name, signal, reference, path):
    """Recognise a waveform; draw and print what fired when."""
    import torch
    from speechbrain import Stage
    from speechbrain.dataio.batch import PaddedBatch

    from cif_lobes.data.tokens import SPACE
    from cif_lobes.decoding.scoring import ErrorRate
    from cif_lobes.inference import alignment
    from cif_lobes.inference import plot as alignment_plot
    from cif_lobes.inference.fires import name_fires
    from cif_lobes.nets.features import LogMel

    hparams, rate = brain.hparams, brain.hparams.sample_rate
    # Whatever the network reads, the picture shows a spectrogram.
    spectrogram = LogMel(rate)
    batch = PaddedBatch([{"signal": signal}])
    with torch.no_grad():
        encoded, x_lengths = brain.encode(batch, Stage.TEST)
        (hypothesis,), fired = brain.transcribe(encoded, x_lengths, Stage.TEST)
        log_mel = spectrogram.fbank(signal[None])[0]
    alpha = fired.alpha[0]

    decode = hparams.tokenizer.decode
    text = decode(hypothesis)
    num_fires = int(fired.lengths[0])
    tokens = [decode([token]) or SPACE for token in hypothesis]
    tokens = name_fires(tokens, num_fires)
    clock = alignment.frame_clock(hparams.features, hparams.encoder, rate)
    spans = alignment.token_spans(tokens, fired.boundaries[0], clock)
    by_words = hparams.error_unit == "word"
    figure = alignment_plot.plot(
        log_mel,
        alpha,
        spans,
        clock,
        alignment.word_spans(spans, text) if by_words else (),
        spectrogram.hop / rate,
        rate,
        hparams.cif.threshold,
        name,
    )
    figure.savefig(path)
    print(alignment.sparkline(alpha, spans, clock))
    print(f"hypothesis: {text}")
    if reference is not None:
        errors = ErrorRate(hparams.error_unit)
        errors.append([name], [text], [reference])
        print(f"reference:  {reference}\n{errors.describe(errors.summary())}")
    print(path)


if __name__ == "__main__":
    run_program(lambda: main(parse_arguments()))
