"""Recognise speech while it is spoken: audio in as it comes, tokens out as they fire.

`cif-transcribe MODEL --stream` prints them (`cif_lobes.inference.live`).

python -m cif_lobes.inference.stream results/AISHELL-1/cif_mini_streaming/1986 --csv dev.csv

prints the latency of the tokens of a csv: the seconds of audio that had been received
when a token came out, less the end of the token's span. A token waits for its chunk of
encoder frames to be full, for the look-ahead of front-end and analysis window, and for
the chunk of audio that completes both. How long computing takes is not in it.
"""

import copy
import statistics
from typing import NamedTuple

import numpy as np
import torch

from cif_lobes.cif.stream import CIFStream
from cif_lobes.data.batches import read_utterance
from cif_lobes.data.manifest import read_manifest
from cif_lobes.decoding.greedy import GreedyPath
from cif_lobes.decoding.hotwords import load_hotwords
from cif_lobes.devices.precision import full_float32
from cif_lobes.devices.processes import check_device
from cif_lobes.inference.alignment import frame_clock
from cif_lobes.inference.command import add_hotwords
from cif_lobes.inference.folders import Opened
from cif_lobes.inference.gate import SpeechGate
from cif_lobes.inference.recordings import as_waveform, check_finite
from cif_lobes.nets.stream import EncoderStream, FeatureStream, WeightStream
from cif_lobes.settings.checks import add_option, option_type
from cif_lobes.settings.program import Parser, run_program


class StreamedToken(NamedTuple):
    """A token, its span, and when it came out, in seconds since the first sample."""

    token: str
    start: float
    end: float
    emitted: float
    """float: seconds of audio that had been received."""
    text: str
    """str: all of the utterance so far, with its spaces."""

    @property
    def latency(self):
        """float: seconds from the end of the token's span until it came out."""
        return self.emitted - self.end


class StreamingRecognizer(Opened):
    """Audio chunks of any size to tokens, greedily, one utterance after the other.

    Tokens are those of the whole utterance at once, greedily decoded, whatever the
    chunks of audio. After an end of sentence nothing comes out until `finish`. With
    hotwords, a token waits for the next fire if it would be another one at the end. Silence
    and steady noise of more than a second are left out, see
    `cif_lobes.inference.gate.SpeechGate`: nobody speaks, so there is no text.

    Arguments
    ---------
    hparams : dict
        From `cif_lobes.inference.export.open_run` or `open_export`, of a streaming yaml.
    device : str
        cpu or cuda.

    Raises
    ------
    ValueError
        If features, encoder or CIF read the whole utterance.

    Example
    -------
    >>> recognizer = StreamingRecognizer.from_run("results/x")  # doctest: +SKIP
    >>> for chunk in microphone:  # doctest: +SKIP
    ...     for token in recognizer.push(chunk):
    ...         print(token.text, end="\\r", flush=True)
    >>> rest = recognizer.finish()  # doctest: +SKIP
    """

    def __init__(self, hparams, device="cpu"):
        check_device(device)
        if "writer" in hparams:
            raise ValueError(
                "a language model writes when it has read the whole utterance, and a "
                "stream has no end: stream with the recogniser that it was trained on"
            )
        self.device = device
        self.tokenizer, self.searcher = hparams["tokenizer"], hparams["searcher"]
        self.sample_rate = hparams["sample_rate"]
        hparams["model"].to(device).eval()
        self.fire = hparams["modules"]["encoder"]
        if not self.searcher.decoder.autoregressive:
            raise ValueError(
                "a BERTDecoder, or one with autoregressive: False, waits for the end of the "
                "utterance, a stream has none: train one with previous tokens"
            )
        self.clock = frame_clock(
            self.fire.features, self.fire.encoder, self.sample_rate
        )
        self.hotwords = {}
        self._reset()

    @property
    def algorithmic_latency(self):
        """float: seconds that the first sample of a chunk waits at most: the chunk and
        its look-ahead."""
        look_ahead = self.encoder.look_ahead * self.fire.features.hop
        look_ahead += self.features.look_ahead
        chunk = self.encoder.chunk_size * self.clock.step
        return chunk + look_ahead / self.sample_rate

    @property
    def ended(self):
        """bool: whether the utterance has had its end of sentence."""
        return self.path.ended

    def use_hotwords(self, hotwords, weight=1.0):
        """Prefer phrases, from the next utterance on; see `CIFRecognizer.use_hotwords`."""
        tree = load_hotwords(hotwords, self.tokenizer) if hotwords is not None else None
        self.hotwords = {"hotwords": tree, "hotword_weight": weight}
        if not self.gate.received:
            self._reset()

    @torch.no_grad()
    @full_float32()
    def push(self, signal):
        """Recognise what the next samples complete.

        Arguments
        ---------
        signal : torch.Tensor or numpy.ndarray, [samples], float32
            At `sample_rate`.

        Returns
        -------
        list of StreamedToken

        Raises
        ------
        ValueError
            If it is no waveform, or has samples that are not finite: it is not heard.
        """
        signal = as_waveform(signal).astype(np.float32)
        check_finite(signal, self.gate.received, self.sample_rate)
        passing = self.gate.push(signal)
        if not len(passing):
            return []
        passing = torch.tensor(passing, device=self.device)
        frames = self.encoder.push(self.features.push(passing))
        return self._tokens(self.cif.push(frames, self.weights.push(frames)))

    @torch.no_grad()
    @full_float32()
    def finish(self):
        """Recognise the rest of the utterance; the next samples begin another.

        Returns
        -------
        list of StreamedToken
        """
        tokens = self._rest()
        self._reset()
        return tokens

    @torch.no_grad()
    @full_float32()
    def is_complete(self):
        """Whether the network says an end of sentence if nothing follows.

        At a pause that tells the end of what is said from a moment's thought. Nothing
        changes by asking.

        Returns
        -------
        bool
        """
        shared = [*self.fire.modules(), *self.searcher.decoder.modules()]
        shared += [self.searcher, self.tokenizer, self.path.hotwords]
        twin = copy.deepcopy(self, {id(part): part for part in shared})
        twin._rest()
        return twin.path.ended

    def _rest(self):
        """Tokens of what has been heard and not been recognised."""
        if self.gate.passed < self.clock.step * self.sample_rate:
            return []  # as of a recording that is shorter than a frame
        frames = self.encoder.push(self.features.finish())
        frames = torch.cat([frames, self.encoder.finish()])
        tokens = self._tokens(self.cif.push(frames, self.weights.push(frames)))
        tokens += self._tokens(self.cif.finish())
        return tokens + self._release(last=True)

    def _reset(self):
        """Before the first sample of an utterance."""
        self.features = FeatureStream(self.fire.features)
        self.encoder = EncoderStream(self.fire.encoder)
        self.weights = WeightStream(self.fire.cif)
        self.cif = CIFStream(self.fire.cif.threshold, self.fire.cif.tail_threshold)
        # The last token is not held up by what its chunk still needs.
        seconds = max(1.0, self.algorithmic_latency)
        self.gate = SpeechGate(self.sample_rate, seconds)
        s = self.searcher
        indices = s.blank_index, s.bos_index, s.eos_index
        self.path = GreedyPath(*indices, s.eos_threshold, **self.hotwords)
        self.before = self.state = self.held = None
        self.ids = []  # so far

    def _tokens(self, fires):
        """One step of the decoder per fire, until the end of sentence."""
        tokens = []
        times = (self.clock.start + self.clock.step * fires.boundaries).tolist()
        times = [self.gate.true_time(time) for time in times]
        spans = zip(times[:-1], times[1:], strict=True)
        for vector, (start, end) in zip(fires.embeddings, spans, strict=True):
            tokens += self._release(last=False)
            if self.path.ended:
                break
            vector = vector[None]
            before = torch.zeros_like(vector) if self.before is None else self.before
            previous = torch.tensor([self.path.previous], device=self.device)
            logits, self.state = self.searcher.decoder.step(
                vector, before, previous, self.state
            )
            self.before, logits = vector, logits[0].float().cpu().numpy()
            going_on, at_end = (
                self.path.choose(logits, last).token for last in (False, True)
            )
            self.held = (going_on, at_end), (start, end)
            if going_on == at_end:
                tokens += self._release(last=False)
        return tokens

    def _release(self, last):
        """The token of the fire before, which is the `last` one or not, if it waits."""
        if self.held is None:
            return []
        tokens, (start, end) = self.held
        self.held = None
        self.path.follow(tokens[last])
        if self.path.ended:
            return []
        self.ids.append(tokens[last])
        name, text = (self.tokenizer.decode(ids) for ids in (self.ids[-1:], self.ids))
        emitted = self.gate.received / self.sample_rate
        # The last encoder frame may reach beyond the end of the audio.
        start, end = min(start, emitted), min(end, emitted)
        return [StreamedToken(name, start, end, emitted, text)]


def measure_latency(recognizer, utterances, chunk_ms):
    """Latency of every token of some recordings, fed in chunks as from a microphone.

    Arguments
    ---------
    recognizer : StreamingRecognizer
    utterances : list of cif_lobes.data.manifest.Utterance
    chunk_ms : float
        Audio that arrives at once, in milliseconds.

    Returns
    -------
    list of float
        Milliseconds.
    """
    latencies, size = [], round(chunk_ms * recognizer.sample_rate / 1000)
    for u in utterances:
        signal = read_utterance(u, recognizer.sample_rate)
        tokens = [t for chunk in signal.split(size) for t in recognizer.push(chunk)]
        tokens += recognizer.finish()
        latencies += [1000 * token.latency for token in tokens]
    return latencies


def main(argv=None):
    """Print the latency of the tokens of a csv."""
    parser = Parser(
        "python -m cif_lobes.inference.stream",
        description="Measure the latency of tokens.",
    )
    add = parser.add_argument
    add("model", help="output_folder of a training run, or an exported folder")
    add("--csv", required=True, help="utterances to recognise (ID, wav, wrd)")
    add(
        "--limit",
        type=option_type(1, "how many"),
        help="how many of them, from the first on (default: all)",
    )
    add_option(parser, "--chunk_ms", 40.0, "ms", "audio that arrives at once, ms")
    device = option_type("cpu", "", "device")
    add("--device", type=device, default="cpu", help="cpu, cuda or cuda:N")
    add_hotwords(parser)
    given = parser.parse_args(argv)
    recognizer = StreamingRecognizer.from_folder(given.model, None, given.device)
    if given.hotwords:
        recognizer.use_hotwords(given.hotwords, given.hotword_weight)
    utterances = read_manifest(given.csv)[: given.limit]
    latencies = sorted(measure_latency(recognizer, utterances, given.chunk_ms))
    if len(latencies) < 2:
        return print(
            f"{len(latencies)} tokens in {len(utterances)} utterances: too few"
        )
    high = statistics.quantiles(latencies, n=10)[-1]
    print(
        f"{len(latencies)} tokens of {len(utterances)} utterances, audio in chunks of "
        f"{given.chunk_ms:g} ms: latency {statistics.median(latencies):.0f} ms in the "
        f"median, {high:.0f} ms at 90 %; algorithmic, at most "
        f"{1000 * recognizer.algorithmic_latency:.1f} ms"
    )


if __name__ == "__main__":
    run_program(main)
