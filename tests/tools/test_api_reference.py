"""make docs: what is public has a page, and arguments are a list on it."""

import pytest
from conftest import ROOT, load_module


@pytest.mark.slow
def test_what_is_public_has_a_page(tmp_path):
    pytest.importorskip("pdoc", reason="the reference is an optional extra")
    load_module(ROOT / "tools/api_reference.py").build(tmp_path)
    for path in ROOT.glob("cif_lobes/**/*.py"):
        name = path.relative_to(ROOT).with_suffix("")
        if (
            name.name in ("__main__", "page")
            or "__all__" in (path.parent / "__init__.py").read_text()
        ):  # where a package names what is public, its own page has it
            continue
        name = name.parent if name.name == "__init__" else name
        assert (tmp_path / f"{name}.html").exists(), name
    page = (tmp_path / "cif_lobes/nets/decoder.html").read_text()
    assert "<strong>d_model</strong>" in page
