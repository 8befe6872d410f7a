"""cif-transcribe: what it is given, and where it writes."""

import io
import json
import shutil
import subprocess
import sys
import types

import pytest
import soundfile
from conftest import speak

from cif_lobes.inference import command
from cif_lobes.inference.command import groups, main
from cif_lobes.inference.formats import FORMATS
from cif_lobes.inference.inputs import find_inputs
from cif_lobes.inference.recognizer import CIFRecognizer

RATE = 16000


@pytest.fixture
def talks(tmp_path):
    """A folder of recordings in folders, and what is none."""
    folder = tmp_path / "talks"
    for number, name in enumerate(["b.wav", "a.FLAC", "deep/er/c.ogg"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, speak("abcd"[number:] + "ab", seed=number), RATE)
    (folder / "notes.txt").write_text("nothing to hear")
    return folder


def texts(exported, files):
    return [t.text for t in CIFRecognizer.from_export(exported).transcribe(files)]


def test_folders_and_globs(exported, talks, capsys):
    wanted = [str(talks / name) for name in ("a.FLAC", "b.wav", "deep/er/c.ogg")]
    said = texts(exported, wanted)
    assert len({*said}) == 3 and all(said)
    main([str(exported), str(talks)])
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows == [[file, text] for file, text in zip(wanted, said, strict=True)]
    main([str(exported), f"{talks}/**/*.ogg", f"{talks}/b.*"])
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [file for file, _ in rows] == [wanted[2], wanted[1]]
    with pytest.raises(SystemExit, match="1 of 1 files could not be read"):
        main([str(exported), f"{talks}/*.mp3"])
    assert "*.mp3: no such file" in capsys.readouterr().err
    (talks / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no audio: no file named .aif"):
        find_inputs([f"{talks}/empty"])


def test_a_file_per_recording_and_format(exported, talks, tmp_path, capsys):
    out = tmp_path / "out"
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF, but no more")
    with pytest.raises(SystemExit, match="1 of 4 files could not be read"):
        main([str(exported), str(broken), str(talks), "--output_dir", str(out)])
    printed = capsys.readouterr()
    assert not printed.out and printed.err.count("skipped ") == 1
    assert f"skipped {broken}: " in printed.err
    names = {
        f"{name}.{suffix}" for name in ("a", "b", "deep/er/c") for suffix in FORMATS
    }
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert found == names
    (said,) = texts(exported, [talks / "b.wav"])
    assert (out / "b.txt").read_text() == f"{said}\n"
    assert json.loads((out / "b.json").read_text())["file"] == str(talks / "b.wav")
    assert (out / "b.vtt").read_text().startswith("WEBVTT\n\n00:00:0")
    assert (out / "b.tsv").read_text().startswith("start\tend\ttext\n")
    options = ["--format", "text", "--output_dir", str(tmp_path / "one")]
    main([str(exported), str(talks / "b.wav"), *options])
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["b.txt"]


def test_nothing_is_overwritten(exported, talks, tmp_path):
    shutil.copy(talks / "b.wav", tmp_path / "b.wav")
    files = [str(talks / "b.wav"), str(tmp_path / "b.wav")]
    with pytest.raises(ValueError, match="b.wav would both be written as out/b.*: rec"):
        main([str(exported), *files, "--output_dir", "out"])


def test_what_is_piped_in(exported, talks, monkeypatch, capsys):
    file = talks / "b.wav"
    pipe = types.SimpleNamespace(buffer=io.BytesIO(file.read_bytes()))
    monkeypatch.setattr(sys, "stdin", pipe)
    main([str(exported), "-", str(file)])
    (said,) = texts(exported, [file])
    assert capsys.readouterr().out == f"-\t{said}\n{file}\t{said}\n"
    with open(file, "rb") as piped:  # by the system, of which libsndfile knows as well
        command = [sys.executable, "-m", "cif_lobes.inference", exported, "-"]
        done = subprocess.run(command, stdin=piped, capture_output=True, text=True)
    assert done.stdout == f"-\t{said}\n", done.stderr
    pipe.buffer = io.BytesIO(b"no audio")
    with pytest.raises(SystemExit, match="1 of 2"):
        main([str(exported), "-", str(file)])
    printed = capsys.readouterr()
    assert (
        "skipped -: Error opening '-': " in printed.err
        and printed.out == f"{file}\t{said}\n"
    )


def test_files_come_out_batch_by_batch(exported, talks, monkeypatch):
    """In the order given, each once a batch is full: nobody waits for the last file."""
    inputs = find_inputs([str(talks), "lost.wav", "-", str(talks / "b.wav")])
    seconds = [soundfile.info(one.file).duration for one in inputs[:3]]
    found = [[one.name for one in group] for group in groups(inputs, sum(seconds[:2]))]
    assert found == [["a", "b"], ["deep/er/c", "lost"], ["stdin"], ["b"]]
    printed, heard = [], []
    monkeypatch.setattr(command.tqdm, "write", lambda text, **_: printed.append(text))
    transcribe = CIFRecognizer.transcribe

    def hear(self, files, **options):
        heard.append((len(files), len(printed)))
        return transcribe(self, files, **options)

    monkeypatch.setattr(CIFRecognizer, "transcribe", hear)
    main([str(exported), str(talks), "--batch_seconds", "0.1"])
    assert heard == [(1, 0), (1, 1), (1, 2)]


def test_it_starts_without_torch():
    code = "import sys; sys.modules['torch'] = None\n"
    code += "from cif_lobes.inference.command import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--output_dir" in done.stdout


def test_an_onnx_export_without_onnxruntime_is_a_message(tmp_path, monkeypatch):
    (tmp_path / "recognizer.json").write_text("{}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="an ONNX export needs onnxruntime, not install"
    ):
        main([str(tmp_path), "a.wav"])


def test_raw_samples_are_passed_over(exported, talks, tmp_path, capsys):
    """soundfile has a TypeError for their name; what comes behind them is heard."""
    raw = tmp_path / "b.raw"
    raw.write_bytes(bytes(3200))
    with pytest.raises(SystemExit, match="1 of 2 files could not be read"):
        main([str(exported), str(raw), str(talks / "b.wav")])
    printed = capsys.readouterr()
    assert "b.wav\t" in printed.out
    assert f"skipped {raw}: raw samples do not say their rate" in printed.err
