"""tools/report.py: what a browser makes of a run's page."""

import json

import browser
import pytest
from test_report import (  # noqa: F401  fixtures
    HOSTILE,
    make,
    neighbours,
    page,
    shown,
    tool,
    write_run,
)

PLAY = """(async () => {
  const button = document.querySelector(".play");
  button.click();
  const audio = players.get(button.utterance);
  await new Promise((done, failed) => {
    audio.addEventListener("timeupdate", () => audio.currentTime > 0.05 && done());
    audio.addEventListener("error", () => failed(new Error("cannot be played")));
  });
  const playing = button.getAttribute("aria-pressed");
  audio.pause();
  return [playing, audio.duration - button.utterance.seconds];
})()"""


@pytest.fixture(scope="module")
def tab():
    chromium = browser.find()
    if not chromium:
        pytest.skip(f"none of {', '.join(browser.NAMES)} is on the PATH")
    with browser.browser(chromium) as tab:
        yield tab


def errors_of(tab):
    """What stands in the column of errors, row by row."""
    cells = "[...document.querySelectorAll('.row')].map(r => r.children[5].textContent)"
    return [int(cell) for cell in tab.run(cells)]


def test_in_a_browser(tab, page, shown, tmp_path):  # noqa: F811
    scored = shown[0]["sets"][0]
    edits = [counts[0] for counts in scored["runs"][0]["counts"]]
    tab.open(page)
    assert tab.run("document.querySelectorAll('#curves figure').length") > 5
    assert errors_of(tab) == sorted(edits, reverse=True)

    header = "document.querySelector('[data-key={}]')"
    sort = tab.run(f"{header.format('errors')}.getAttribute('aria-sort')")
    assert sort == "descending"
    tab.run(f"{header.format('errors')}.querySelector('button').click()")
    assert errors_of(tab) == sorted(edits)
    sort = tab.run(f"{header.format('errors')}.getAttribute('aria-sort')")
    assert sort == "ascending"
    tab.run(f"{header.format('seconds')}.querySelector('button').click()")
    rows = "[...document.querySelectorAll('.row')].map(r => +r.children[3].textContent)"
    seconds = tab.run(rows)
    assert seconds == sorted(seconds, reverse=True) and len(seconds) == 12

    typed = "view.search.value = 'UTT2-007'; view.search"
    tab.run(f"{typed}.dispatchEvent(new Event('input'))")
    assert len(errors_of(tab)) == 1
    assert tab.run("status.textContent").startswith("1 of 12 utterances: CER ")
    tab.run("view.clear.click()")
    low = sorted(seconds)[6]
    typed = f"view.secondsInputs[0].value = {low}; view.secondsInputs[0]"
    tab.run(f"{typed}.dispatchEvent(new Event('input'))")
    kept = [u for u in scored["utterances"] if u["seconds"] >= low]
    assert len(errors_of(tab)) == len(kept) < 12
    tab.run("view.clear.click()")
    tab.run("view.kind.value = 1; view.kind.dispatchEvent(new Event('change'))")
    assert len(errors_of(tab)) == sum(e > 0 for e in edits)
    tab.run("view.clear.click()")

    playing, difference = tab.run(PLAY)
    assert playing == "true" and abs(difference) < 0.01
    tab.run(f"{header.format('errors')}.querySelector('button').click()")
    opener = "document.querySelector('.open')"
    tab.run(f"{opener}.click()")
    assert tab.run(f"{opener}.getAttribute('aria-expanded')") == "true"
    fires = [*scored["runs"][0]["fires"]["utterances"].values()]
    marks = tab.run("document.querySelectorAll('.detail .fires circle').length")
    assert marks in [len(found["fires"]) for found in fires]
    assert tab.run("document.querySelectorAll('.detail audio').length") == 1
    tab.run(f"{opener}.click()")
    assert tab.run("document.querySelector('.detail')") is None

    tab.look(tmp_path / "phone.png", width=390, dark=True)
    assert tab.run("document.documentElement.scrollWidth") == 390
    assert tab.complaints == []


def test_texts_of_a_folder_stay_texts_in_a_browser(tab, tool, tmp_path):  # noqa: F811
    tab.complaints.clear()
    words = f"{HOSTILE} <b>bold</b>"
    results = {HOSTILE: {"unit": "word"}, "test": {"unit": "word"}}
    run = write_run(tmp_path / "run", [words], [f"{words} left"], results)
    (run / "epochs.jsonl").write_text(json.dumps({"epoch": 1, "valid": {HOSTILE: 1}}))
    out = tmp_path / "r.html"
    make(tool, out, run)
    tab.open(out)
    heard = tab.run("document.querySelector('.row .text').textContent")
    assert heard.startswith(words)
    assert (
        tab.run("document.querySelectorAll('main b, main img, main script').length")
        == 0
    )
    assert tab.complaints == []
