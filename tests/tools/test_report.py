"""tools/report.py: what is on a run's page."""

import base64
import io
import json
import re
import shlex
import shutil
import urllib.parse

import pytest
import soundfile
from conftest import ROOT, epochs, load_module, rows_of
from programs import run_python

from cif_lobes.decoding.scoring import ErrorRate
from cif_lobes.decoding.significance import compare_runs

HOSTILE = "</script><script>alert(1)</script><img/src=x/onerror=alert(2)>"


@pytest.fixture(scope="module", autouse=True)
def neighbours():
    """Scripts import what lies beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        yield


@pytest.fixture(scope="module")
def tool(neighbours):
    return load_module(ROOT / "tools/report.py")


def make(tool, out, *arguments):
    """Call the program; data and recordings as the page has them."""
    tool.main(tool.parse_arguments([*map(str, arguments), "--out", str(out)]))
    return parts(out.read_text(encoding="utf-8"))


def parts(page):
    return [
        json.loads(page.split(f'json" id="{name}">')[1].split("</script>")[0])
        for name in ("data", "audio")
    ]


def write_run(folder, hypotheses, references, results=None, rows=()):
    """A run folder with one scored set and nothing to recognise with."""
    folder.mkdir(parents=True)
    scores = ErrorRate("word")
    ids = [f"utt{n}" for n in range(len(references))]
    scores.append(ids, hypotheses, references)
    scores.write(folder / "errors_test.txt")
    results = {"test": scores.summary()} if results is None else results
    record = {"yaml": "x.yaml", "seed": 1, "commands": ["python x"], "results": results}
    (folder / "run.json").write_text(json.dumps(record))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "epochs.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def page(tool, trained, tmp_path_factory):
    """Page of the tiny run, with the fires of three utterances."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    make(tool, out, trained, "--fires", "3")
    return out


@pytest.fixture(scope="module")
def shown(page):
    return parts(page.read_text(encoding="utf-8"))


def test_every_utterance_with_its_errors(shown, trained, corpus):
    data, _ = shown
    (run,), results = data["runs"], json.loads((trained / "run.json").read_text())
    rows = rows_of(corpus[1])
    # Other tests may have scored the run in other ways since.
    assert {scored["name"] for scored in data["sets"]} <= {*results["results"]}
    valid, test = data["sets"][:2]
    assert [valid["name"], test["name"]] == ["valid", "set2"]
    for scored, line in zip((valid, test), run["results"], strict=False):
        figures = results["results"][scored["name"]]
        assert line["error_rate"] == figures["error_rate"] and scored["unit"] == "CER"
        (own,) = scored["runs"]
        edits, of, subs, dels, ins = (sum(c) for c in zip(*own["counts"], strict=True))
        assert (subs, dels, ins) == tuple(
            figures[name] for name in ("substitutions", "deletions", "insertions")
        )
        assert edits == subs + dels + ins and of == figures["reference_length"]
        for u, pairs, row in zip(scored["utterances"], own["pairs"], rows, strict=True):
            assert (u["id"], u["speaker"]) == (row["ID"], "s")
            assert u["seconds"] == pytest.approx(float(row["duration"]), abs=1e-5)
            units = [p if isinstance(p, str) else p[0] for p in pairs]
            assert "".join(filter(None, units)) == row["wrd"]
        frequent = own["frequency"]
        assert sum(c["of"] for c in frequent) == of
        assert sum(c["errors"] for c in frequent) == subs + dels


def test_curves_are_those_of_epochs_jsonl(shown, trained):
    data, _ = shown
    found = {c["name"]: c for c in data["curves"]}
    rows = epochs(trained)
    losses = rows[0]["train"]["losses"]
    assert {name for name, c in found.items() if c["loss"]} == {*losses}
    assert (
        data["curves"][0]["name"] == "error_rate" and data["curves"][0]["unit"] == "CER"
    )
    assert {"accuracy", "quantity_error", "learning_rate"} <= found.keys()
    for stage in ("train", "valid"):
        (line,) = (x for x in found["quantity"]["lines"] if x["stage"] == stage)
        values = [row[stage]["losses"]["quantity"]["value"] for row in rows]
        assert line["points"] == [[n, v] for n, v in enumerate(values, start=1)]


def test_recordings_are_in_the_page_once(shown, utterances):
    """Both sets are of the same files."""
    data, audio = shown
    assert len(audio) == len(utterances) == 12
    for scored in data["sets"]:
        for u, (_, signal, _) in zip(scored["utterances"], utterances, strict=True):
            sound = base64.b64decode(audio[u["audio"]])
            samples, rate = soundfile.read(io.BytesIO(sound))
            assert len(samples) / rate == pytest.approx(len(signal) / 16000, abs=0.01)
            assert abs(samples).max() == pytest.approx(
                float(signal.abs().max()), rel=0.2
            )


def test_fires_are_those_of_the_scored_texts(shown):
    for scored in shown[0]["sets"]:
        (run,) = scored["runs"]
        fires = run["fires"]
        edits = [counts[0] for counts in run["counts"]]
        assert len(fires["utterances"]) == 3
        kept = [edits[int(n)] for n in fires["utterances"]]
        assert sorted(kept) == sorted(edits)[-3:]
        for n, found in fires["utterances"].items():
            pairs = run["pairs"][int(n)]
            heard = [p if isinstance(p, str) else p[1] for p in pairs]
            text = "".join(filter(None, heard))
            assert found["text"] == text
            names = [name for name, _ in found["fires"]]
            assert "".join(names[: len(text)]) == text
            assert names[len(text) : len(text) + 1] in ([], ["<eos>"])
            # Every fire but that of the tail has weights of the threshold behind it.
            total = sum(found["alpha"]) / 1000
            assert len(names) - 1 <= total + 0.01 and total < len(names) + 1
            times = [end for _, end in found["fires"]]
            assert times == sorted(times)
            last = fires["start"] + fires["step"] * len(found["alpha"])
            assert 0 < times[0] and times[-1] <= last + 0.001


def test_what_is_too_much_is_linked(tool, trained, tmp_path, corpus):
    (tmp_path / "pages").mkdir()
    out = tmp_path / "pages/report.html"
    data, audio = make(tool, out, trained, "--audio_mb", "0.015")
    size = sum(map(len, audio))
    assert 0 < len(audio) < 12 and size <= 15_000
    (counts,) = (run["counts"] for run in data["sets"][0]["runs"])
    utterances = data["sets"][0]["utterances"]
    links = [u["audio"] for u in utterances if isinstance(u["audio"], str)]
    assert len(links) + len(audio) == 12
    for link in links:
        file = out.parent / urllib.parse.unquote(link)
        assert file.resolve().parent == corpus[1].parent.resolve() and file.is_file()
    edits = [c[0] for c in counts]
    embedded = [
        e for e, u in zip(edits, utterances, strict=True) if u["audio"] not in links
    ]
    assert sorted(embedded) == sorted(edits)[-len(audio) :], "most errors first"
    data, audio = make(tool, out, trained, "--audio_mb", "0")
    assert audio == [] and isinstance(data["sets"][0]["utterances"][0]["audio"], str)


def test_runs_are_compared_with_the_first(tool, tmp_path):
    references = [f"the cat sat on mat {n}" for n in range(30)]
    worse = [text.replace("cat", "bat") for text in references]
    base = write_run(tmp_path / "cif/1", worse, references)
    ours = write_run(tmp_path / "cif_acd/1", worse[:5] + references[5:], references)
    other = write_run(tmp_path / "other/1", worse[:20], references[:20])
    data, _ = make(tool, tmp_path / "r.html", base, ours, other)
    assert [run["name"] for run in data["runs"]] == ["cif", "cif_acd", "other"]
    first, second = data["comparisons"]
    expected = compare_runs([ours], [base], "test")
    assert first["run"] == 1 and first["set"] == "test"
    assert first["low"] == expected["low"] and first["high"] == expected["high"] < 0
    assert "other utterances" in second["problem"]
    (scored,) = data["sets"]
    assert [len(run["counts"]) for run in scored["runs"]] == [30, 30, 30]
    assert scored["runs"][2]["counts"].count(None) == 10


def test_a_perfect_baseline_divides_nothing_by_nothing(tool, tmp_path):
    texts = ["a b", "c d"]
    runs = [write_run(tmp_path / name, texts, texts) for name in ("one", "two")]
    data, _ = make(tool, tmp_path / "r.html", *runs)
    assert data["comparisons"][0]["relative"] is None


def test_texts_of_a_folder_stay_texts(tool, tmp_path):
    """Nothing ends the script of the data, and what is no figure is none."""
    figures = {"unit": {"x": HOSTILE}, "error_rate": HOSTILE, "beam": HOSTILE}
    losses = {HOSTILE: {"value": float("nan")}, "ce": HOSTILE}
    rows = [
        {"epoch": 1, "learning_rate": float("inf"), "valid": {"losses": losses}},
        {"epoch": 2, "train": "x", "valid": {HOSTILE: 1e300, "losses": []}},
    ]
    run = write_run(
        tmp_path / "run",
        [HOSTILE],
        [f"<!-- {HOSTILE}"],
        {HOSTILE: figures, "test": 3},
        rows,
    )
    text = (run / "run.json").read_text().replace("python x", f"\\ud800{HOSTILE}")
    (run / "run.json").write_text(text)
    out = tmp_path / "r.html"
    data, _ = make(tool, out, run)
    page = out.read_text(encoding="utf-8")
    assert page.count("<script") == tool.TEMPLATE.read_text().count("<script") == 3
    assert "<!--" not in page and "<img" not in page
    (pairs,) = data["sets"][0]["runs"][0]["pairs"]
    assert [HOSTILE, HOSTILE] not in pairs and HOSTILE in pairs
    assert data["runs"][0]["results"][0]["set"] == HOSTILE
    assert data["runs"][0]["results"][0]["error_rate"] is None
    curve = next(c for c in data["curves"] if c["name"] == HOSTILE and c["loss"])
    assert curve["lines"][0]["points"] == [[1, None]]


def test_only_the_pages_own_code_may_run(tool, page):
    html = page.read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    script = html.split("<script>")[1].split("</script>")[0]
    assert tool.digest(script) in policy and "unsafe" not in policy
    assert "http" not in policy and "innerHTML" not in script


def test_no_file_but_sound_gets_into_the_page(tool, trained, tmp_path):
    """A manifest of someone else may name any file, a link may lead anywhere."""
    run = shutil.copytree(trained, tmp_path / "run", symlinks=True)
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    manifest = run / "save/set2.csv"
    text = re.sub(r"[^,\n]*\.flac", str(secret), manifest.read_text())
    manifest.write_text(text)
    (run / "errors_stolen.txt").symlink_to(secret)
    data, audio = make(tool, tmp_path / "r.html", run)
    assert len(audio) == 12, "of the other set"
    test = next(s for s in data["sets"] if s["name"] == "set2")
    assert {u["audio"] for u in test["utterances"]} == {None}
    notes = "\n".join(data["notes"])
    assert f"recording of utt2-000: {secret} is gone or cannot be decoded" in notes
    assert "errors_stolen.txt is a link to" in notes


@pytest.mark.parametrize(
    "lost, note",
    [
        ("errors_*.txt", "utterances: {run} has no errors_*.txt. Make them with: "),
        ("epochs.jsonl", "curves: {run}/epochs.jsonl is not there: no epoch has ended"),
        (
            "hyperparams.yaml",
            "recordings of {run}: {run}/hyperparams.yaml, which names",
        ),
        (
            "save/set2.csv",
            "recordings of set2: {run}/save/set2.csv is not there: start",
        ),
        ("save/train.csv", "errors by frequency: {run}/save/train.csv is not there"),
        ("save/CKPT*", "fires of {run}: "),
    ],
)
def test_what_is_missing_is_left_out(tool, trained, tmp_path, capsys, lost, note):
    run = shutil.copytree(trained, tmp_path / "run")
    for path in run.glob(lost):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    data, _ = make(tool, tmp_path / "r.html", run, "--fires")
    (found,) = (n for n in data["notes"] if note.format(run=run) in n)
    assert f"not on the page: {found}\n" in capsys.readouterr().err
    assert bool(data["sets"]) == (lost != "errors_*.txt")
    assert (len(data["curves"]) > 1) == (lost != "epochs.jsonl")


def test_counts_alone_are_shown_without_texts(tool, tmp_path):
    kept = ROOT / "docs/runs/minispeech-side-by-side-cif"
    data, audio = make(tool, tmp_path / "r.html", kept)
    (scored, _) = data["sets"]
    assert len(scored["utterances"]) == 285 and not audio
    assert scored["runs"][0]["counts"][0] == [3, 10, 3, 0, 0]
    assert not any(scored["runs"][0]["pairs"])


def test_damage_is_named(tool, tmp_path):
    run = write_run(tmp_path / "run", ["a"], ["a"], rows=[{"epoch": 1}])
    (run / "epochs.jsonl").write_text('{"epoch": 1}\n{"epo')
    (run / "errors_test.txt").write_text(
        f"{'=' * 80}\nutt0, %WER 0.00 [ 0 / 2, 0 ins, 0 del, 0 sub ]\na ; b\n= ; =\na\n"
    )
    data, _ = make(tool, tmp_path / "r.html", run)
    notes = "\n".join(data["notes"])
    assert "epochs.jsonl, line 2 is damaged" in notes and data["sets"] == []
    assert (
        "errors_test.txt: its alignments cannot be read" in notes or data["sets"] == []
    )
    (run / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is damaged .*leave this run out"):
        make(tool, tmp_path / "r.html", run)
    with pytest.raises(FileNotFoundError, match="is not a run folder: no run.json"):
        make(tool, tmp_path / "r.html", tmp_path)
    with pytest.raises(ValueError, match="is given twice"):
        make(tool, tmp_path / "r.html", run, run)


def test_the_command_of_the_docs(trained, tmp_path):
    (command,) = re.findall(
        r"```bash\n(.*)\n```", (ROOT / "docs/report.md").read_text(encoding="utf-8")
    )
    python, script, *words = shlex.split(command)
    for run in (word for word in words if word.startswith("results/")):
        (tmp_path / run).parent.mkdir(parents=True)
        (tmp_path / run).symlink_to(trained)
    assert python == "python"
    done = run_python([ROOT / script, *words], cwd=tmp_path)
    assert done.stdout.startswith("report.html: 2 runs, "), done.stdout
    data, _ = parts((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [run["name"] for run in data["runs"]] == ["cif", "cif_hieradist"]
    for scored in data["sets"]:
        assert all(len(run["fires"]["utterances"]) == 12 for run in scored["runs"])
