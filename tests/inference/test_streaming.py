"""Chunk by chunk against the whole utterance: features, encoder, weights, tokens."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import speak, spoil_padding, tiny_arguments, train, write_corpus
from torch.nn import functional

from cif_lobes.cif import CIF
from cif_lobes.data.batches import read_audio
from cif_lobes.data.manifest import read_manifest
from cif_lobes.data.tokens import CharTokenizer
from cif_lobes.decoding.fusion import fuse
from cif_lobes.decoding.hotwords import load_hotwords
from cif_lobes.decoding.searcher import GreedySearcher
from cif_lobes.inference.export import FireEncoder
from cif_lobes.inference.onnx import OnnxRecognizer
from cif_lobes.inference.onnx_export import export_onnx
from cif_lobes.inference.recognizer import CIFRecognizer
from cif_lobes.inference.stream import StreamingRecognizer, main
from cif_lobes.nets.decoder import CIFDecoder
from cif_lobes.nets.encoder import ConformerEncoder
from cif_lobes.nets.features import LogMel
from cif_lobes.nets.stream import EncoderStream, FeatureStream, WeightStream

RATE = 16000
LETTERS = "abcdefghijklmnopqrstuvw"


def chunked_encoder(chunk_size=2, left_chunks=3, pool_after=(2,), strides=(2, 2)):
    torch.manual_seed(0)
    encoder = ConformerEncoder(
        20, 16, 3, 2, 32, 7, pool_after, 4, strides, 0.1, chunk_size, left_chunks
    )
    with torch.no_grad():  # a bias is what padding would show through
        for layer in encoder.layers:
            layer.convolution_module.layer_norm.bias.fill_(3.0)
    return encoder.eval()


def pieces_of(x, size):
    return [x[i : i + size] for i in range(0, len(x), size)]


def run(stream, pieces):
    outputs = [stream.push(piece) for piece in pieces]
    if hasattr(stream, "finish"):
        outputs.append(stream.finish())
    return torch.cat(outputs)


def _normalise_on_rank(rank, address):
    """Statistics of one process of two against those of one that hears everything."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    waves, lengths = 3 * torch.rand(3, RATE), torch.tensor([RATE, RATE, RATE // 2])
    dist.broadcast(waves, 0)
    waves[2, RATE // 2 :] = 0
    features = LogMel(n_mels=20, normalization="global")
    mine = slice(0, 1) if rank == 0 else slice(1, 3)
    features(waves[mine], lengths[mine])
    dist.destroy_process_group()
    alone = LogMel(n_mels=20, normalization="global")
    alone(waves, lengths)
    torch.testing.assert_close(features.state_dict(), alone.state_dict())


# --- each stage ---


@pytest.mark.parametrize("size", [1, 160, 1000, 7000])
@pytest.mark.parametrize("samples", [7, 200, 5000])
def test_features(samples, size):
    features = LogMel(n_mels=20, normalization="global")
    features(3 * torch.randn(1, RATE), torch.tensor([RATE]))  # counts it
    features.eval()
    signal = torch.randn(samples)
    whole, lengths = features(signal[None], torch.tensor([samples]))
    found = run(FeatureStream(features), pieces_of(signal, size))
    assert len(found) == lengths == whole.shape[1]
    torch.testing.assert_close(found, whole[0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_global_normalization_counts_what_all_processes_hear(tmp_path):
    mp.spawn(_normalise_on_rank, args=(f"file://{tmp_path}/rendezvous",), nprocs=2)


def test_global_normalization_counts_real_frames_in_training_only():
    features = LogMel(n_mels=20, normalization="global")
    waves, lengths = torch.randn(2, RATE), torch.tensor([RATE, RATE // 2])
    waves[1, RATE // 2 :] = 0
    features(waves, lengths)
    assert features.normalize.frames == 1 + 101 + 51
    trained = {k: v.clone() for k, v in features.state_dict().items()}
    features.eval()(torch.zeros(1, RATE), lengths[:1])
    for name, value in features.state_dict().items():
        assert torch.equal(value, trained[name])
    assert {"normalize.frames", "normalize.total"} <= trained.keys()
    # A later frame, however loud, changes no earlier one.
    quiet, _ = features(waves[:1], lengths[:1])
    waves[0, RATE // 2 :] *= 100
    loud, _ = features(waves[:1], lengths[:1])
    assert torch.equal(quiet[:, :48], loud[:, :48])


@pytest.mark.parametrize("strides", [(2,), (2, 2)])
@pytest.mark.parametrize("pool_after", [(), (2,), (1, 3)])
@pytest.mark.parametrize("chunk_size, left_chunks", [(1, 2), (3, 0)])
def test_encoder(chunk_size, left_chunks, pool_after, strides):
    """Fed one feature frame at a time, or 37, or all at once; short ones, too."""
    encoder = chunked_encoder(chunk_size, left_chunks, pool_after, strides)
    for length in (1, 8, 103):
        x = torch.randn(length, 20)
        whole, lengths = encoder(x[None], torch.tensor([length]))
        for size in (1, 37, length):
            found = run(EncoderStream(encoder), pieces_of(x, size))
            assert len(found) == lengths
            torch.testing.assert_close(found, whole[0], atol=1e-4, rtol=1e-4)


def test_encoder_in_float64(monkeypatch):
    """What differs above is rounding. SpeechBrain's softmax is float32 by itself."""
    softmax = functional.softmax
    monkeypatch.setattr(functional, "softmax", lambda x, dim, dtype: softmax(x, dim))
    encoder = chunked_encoder().double()
    encoder.positions.emb_dtype = torch.float64
    x = torch.randn(203, 20, dtype=torch.float64)
    whole, _ = encoder(x[None], torch.tensor([203]))
    found = run(EncoderStream(encoder), pieces_of(x, 11))
    torch.testing.assert_close(found, whole[0], atol=1e-10, rtol=1e-10)


def test_chunked_encoder_alone_equals_in_a_batch():
    """Padding, NaN included, is not seen within the last chunk either."""
    encoder = chunked_encoder(chunk_size=4)
    x_lengths = torch.tensor([150, 101, 64, 7, 1])
    x = spoil_padding(torch.randn(5, 150, 20), x_lengths)
    together, lengths = encoder(x, x_lengths)
    for b, length in enumerate(x_lengths):
        alone, _ = encoder(x[b : b + 1, :length], x_lengths[b : b + 1])
        torch.testing.assert_close(together[b, : lengths[b]], alone[0])


def test_nothing_beyond_the_chunk_is_seen():
    """A change of feature 100 reaches its own chunk and later ones: 16 features each."""
    encoder = chunked_encoder()
    x, length = torch.randn(1, 203, 20), torch.tensor([203])
    before, _ = encoder(x, length)
    x[0, 100] += 5.0
    after, _ = encoder(x, length)
    changed = (before != after).any(2)[0]
    # Its first reader is front-end frame 24 (96 to 102), of the chunk 24 to 27.
    assert changed[12] and not changed[:12].any() and changed[14:16].all()


@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_weights(size):
    torch.manual_seed(0)
    cif = CIF(16, kernel_size=5, causal=True).eval()
    x = torch.randn(30, 16)
    whole = cif.weights(x[None], torch.tensor([30]))[0]
    found = run(WeightStream(cif), [x[:0], *pieces_of(x, size)])
    torch.testing.assert_close(found, whole)
    x[20:] += 1.0
    later = cif.weights(x[None], torch.tensor([30]))[0]
    assert torch.equal(whole[:20], later[:20]) and not torch.equal(whole, later)


# --- all of it ---


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A streaming network that has learnt nothing, but fires and babbles."""
    torch.manual_seed(4)
    path = tmp_path_factory.mktemp("chars") / "chars.txt"
    features = LogMel(n_mels=20, normalization="global")
    features(torch.from_numpy(speak("abcd"))[None], torch.tensor([18560]))
    encoder, cif = chunked_encoder(), CIF(16, causal=True, tail_threshold=0.2)
    decoder = CIFDecoder(27, 16, 1, 2, 32)
    network = {"features": features, "encoder": encoder, "cif": cif, "decoder": decoder}
    return {
        "tokenizer": CharTokenizer(path, 27, "zh").fit([LETTERS]),
        "sample_rate": RATE,
        "model": torch.nn.ModuleDict(network),
        "modules": {"encoder": FireEncoder(features, encoder, cif)},
        "searcher": GreedySearcher(decoder),
    }


def offline(parts, signal):
    """Tokens of the whole utterance, and the ends of their spans in encoder frames."""
    with torch.no_grad():
        fired = parts["modules"]["encoder"](signal[None], torch.ones(1))
        ((ids,), _) = parts["searcher"](fired.embeddings, fired.lengths)
    names = [parts["tokenizer"].decode([i]) for i in ids]
    return names, fired.boundaries[0, 1 : len(ids) + 1]


def test_tokens_of_the_whole_utterance(parts):
    """Utterance after utterance, in chunks of any size; spans, too."""
    recognizer, seen = StreamingRecognizer(parts), set()
    for seed, size in enumerate((1600, 333, 16000, 50000)):
        signal = torch.from_numpy(speak("abcdbdac", seed=seed))
        wanted, ends = offline(parts, signal)
        tokens = [t for c in pieces_of(signal, size) for t in recognizer.push(c)]
        streamed = len(tokens)
        tokens += recognizer.finish()
        assert [t.token for t in tokens] == wanted
        times = (0.01 + 0.08 * ends).clamp(max=len(signal) / RATE).tolist()
        assert [t.end for t in tokens] == pytest.approx(times, abs=1e-3)
        assert len(tokens) > streamed > 5
        seen |= set(wanted)
    assert len(seen) >= 3


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0])
def test_hotwords_as_of_the_whole_utterance(parts, monkeypatch, weight):
    """The tree goes along; a last token that waited comes out with `finish`."""
    recognizer, moved = StreamingRecognizer(parts), 0
    hotwords = ["abc", "gg", "qr", "vwv"]
    recognizer.use_hotwords(hotwords, weight)
    tree = load_hotwords(hotwords, parts["tokenizer"])
    searcher = parts["searcher"]
    for seed, size in enumerate((1600, 333, 16000, 50000, 1600, 1600)):
        signal = torch.from_numpy(speak("abcdbdac"[seed % 4 :], seed=seed))
        plain, _ = offline(parts, signal)
        monkeypatch.setattr(searcher, "scorer", fuse(None, 0, tree, weight))
        wanted, ends = offline(parts, signal)
        monkeypatch.undo()
        tokens = [t for c in pieces_of(signal, size) for t in recognizer.push(c)]
        tokens += recognizer.finish()
        assert [t.token for t in tokens] == wanted
        times = (recognizer.clock.start + 0.08 * ends).clamp(max=len(signal) / RATE)
        assert [t.end for t in tokens] == pytest.approx(times.tolist(), abs=1e-3)
        moved += plain != wanted
    assert bool(moved) == bool(weight)


def test_a_token_that_may_be_the_last_waits(parts):
    """What it is depends on whether a fire follows: with one more, and with no more."""
    recognizer, waited = StreamingRecognizer(parts), 0
    recognizer.use_hotwords([f"{a}{b}" for a in LETTERS for b in LETTERS], 2.0)
    for seed in range(3):
        signal = torch.from_numpy(speak("abcdbdac", seed=seed))
        for chunk in pieces_of(signal, 160):
            recognizer.push(chunk)
            waited += recognizer.held is not None
        recognizer.finish()
        assert recognizer.held is None
    assert waited
    recognizer.use_hotwords(None)
    assert recognizer.path.hotwords is None


@pytest.mark.parametrize("level", [0.0, 1e-4, 1e-2])
def test_no_text_where_nobody_speaks(parts, level):
    """In a minute of it; what is said then is heard as if it began half a second before."""
    generator = torch.Generator().manual_seed(0)
    minute = level * torch.randn(60 * RATE, generator=generator)
    recognizer = StreamingRecognizer(parts)
    assert [t for c in minute.split(1600) for t in recognizer.push(c)] == []
    assert recognizer.finish() == []
    signal = torch.cat([minute, torch.from_numpy(speak("abcdbdac"))])
    tokens = [t for c in signal.split(1600) for t in recognizer.push(c)]
    passed = recognizer.gate.passed
    tokens += recognizer.finish()
    wanted, ends = offline(parts, signal[-passed:])
    assert [t.token for t in tokens] == wanted != []
    late = (len(signal) - passed) / RATE
    assert 59 <= late < 60.5
    times = (late + 0.01 + 0.08 * ends).clamp(max=len(signal) / RATE).tolist()
    assert [t.end for t in tokens] == pytest.approx(times, abs=1e-3)


def test_a_stream_of_nothing(parts):
    recognizer = StreamingRecognizer(parts)
    assert recognizer.finish() == []
    for samples in 0, 1, 399, RATE:
        assert recognizer.push(torch.rand(samples)) + recognizer.finish() == []


@pytest.mark.parametrize(
    "signal, message",
    [
        (torch.full((9,), torch.nan), r"sample 18,562 \(1.16 s\) is NaN or infinite"),
        (torch.zeros(1, 9), r"\[samples\], not \[1, 9\]"),
        (torch.zeros(9, dtype=torch.int16), "not of int16"),
    ],
)
def test_what_is_no_sound_is_refused_and_the_stream_goes_on(parts, signal, message):
    """With the words of recognition."""
    speech = torch.from_numpy(speak("abcd"))
    if signal.isnan().any():
        signal = torch.cat([torch.zeros(2), signal])
    recognizer = StreamingRecognizer(parts)
    tokens = recognizer.push(speech)
    with pytest.raises(ValueError, match=message):
        recognizer.push(signal)
    tokens += recognizer.finish()
    again = recognizer.push(speech) + recognizer.finish()
    assert [t[:3] for t in tokens] == [t[:3] for t in again] != []


def test_a_token_is_late_by_no_more_than_its_chunk(parts):
    """And by no less than nothing: none comes before the end of its span."""
    recognizer = StreamingRecognizer(parts)
    assert recognizer.algorithmic_latency == pytest.approx(0.16 + 0.02 + 0.0125)
    signal = torch.from_numpy(speak("abcdbdac"))
    tokens = [t for chunk in pieces_of(signal, 160) for t in recognizer.push(chunk)]
    assert len(tokens) > 5
    assert [t.emitted for t in tokens] == sorted(t.emitted for t in tokens)
    # The span of the first frame begins at 10 ms: it stands for what is around it.
    slack = recognizer.clock.start + 0.01
    for token in tokens:
        assert 0 <= token.latency <= recognizer.algorithmic_latency + slack


def test_end_of_sentence_ends_the_utterance(parts, monkeypatch):
    """As offline; the next utterance begins anew."""
    signal = torch.from_numpy(speak("abcdbdac"))
    names, _ = offline(parts, signal)
    cut = next(n for n in names if n != names[0])
    eos = parts["tokenizer"].encode(cut)[0]
    monkeypatch.setattr(parts["searcher"], "eos_index", eos)
    wanted, _ = offline(parts, signal)
    assert 0 < len(wanted) < len(names)
    recognizer = StreamingRecognizer(parts)
    for _ in range(2):
        tokens = recognizer.push(signal) + recognizer.finish()
        assert [t.token for t in tokens] == wanted


@pytest.mark.parametrize(
    "room, attribute, value, message",
    [
        ("features", "normalization", "sentence", 'normalization "sentence"'),
        ("encoder", "chunk_size", None, "no chunk_size"),
        ("cif", "causal", False, "not causal"),
    ],
)
def test_what_reads_the_whole_utterance_is_refused(
    parts, monkeypatch, room, attribute, value, message
):
    monkeypatch.setattr(parts["model"][room], attribute, value)
    with pytest.raises(ValueError, match=f"{message}.*cif_mini_streaming.yaml"):
        StreamingRecognizer(parts)


def test_command_line(parts, monkeypatch, tmp_path, capsys, caplog, trained):
    manifest = write_corpus(tmp_path, 3, seed=5)
    monkeypatch.setattr("cif_lobes.inference.folders.open_folder", lambda *_: parts)
    hotwords = tmp_path / "names.txt"
    hotwords.write_text("abc\nxyz\n")
    options = ["--limit", "2", "--chunk_ms", "10", "--hotwords", str(hotwords)]
    main(["run", "--csv", str(manifest), *options])
    assert "1 of 2 phrases cannot be written" in caplog.text
    out = capsys.readouterr().out
    assert "tokens of 2 utterances, audio in chunks of 10 ms" in out
    assert out.endswith("at most 192.5 ms\n")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="cif_mini_streaming.yaml"):
        main([str(trained), "--csv", str(manifest)])


@pytest.mark.slow
def test_a_trained_run_streams_and_exports(corpus, tmp_path):
    """The yaml trains; stream, whole utterances and ONNX say the same."""
    # As many epochs as teach the tones without the augmentations, which take longer.
    settings = {"number_of_epochs": 24, "silence_probability": 0, "gain_db": 0}
    arguments = tiny_arguments(corpus, tmp_path, chunk_size=4, **settings)
    arguments[0] = arguments[0].replace("cif_mini.yaml", "cif_mini_streaming.yaml")
    train(arguments)
    export_onnx(tmp_path / "run", tmp_path / "onnx")
    utterances = list(read_manifest(corpus[1]))
    files = [u.wav for u in utterances]
    whole = CIFRecognizer.from_run(tmp_path / "run").transcribe(files)
    recognizer = StreamingRecognizer.from_run(tmp_path / "run")
    onnx = OnnxRecognizer(tmp_path / "onnx")
    for u, wanted in zip(utterances, whole, strict=True):
        chunks = read_audio(u.wav, RATE).split(640)
        tokens = [t for chunk in chunks for t in recognizer.push(chunk)]
        tokens += recognizer.finish()
        assert "".join(t.token for t in tokens) == wanted.text
        assert onnx.transcribe(u.wav).text == wanted.text
    right = sum(u.wrd == t.text for u, t in zip(utterances, whole, strict=True))
    assert right > len(files) / 2
