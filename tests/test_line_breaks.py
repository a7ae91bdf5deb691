"""Long names break where their parts end, on terminals and on pages, and lose nothing by it."""

from __future__ import annotations

from pathlib import Path

import pytest
from folding import constants, model_of, norm
from hypothesis import given
from hypothesis import strategies as st

import bnfold
from bnfold.cli.cells import with_line_ends
from bnfold.cli.render import Output, table
from bnfold.line_breaks import pieces
from bnfold.model_file import save_model
from bnfold.reporting.html import write_fold_report

NAME = "/layer1/layer1.0/bn1/BatchNormalization"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NAME, ["/layer1/", "layer1.", "0/", "bn1/", "Batch", "Normalization"]),
        ("features_denseblock1_norm", ["features_", "denseblock1_", "norm"]),
        ("short/name", ["short/name"]),
        ("1.25 of 2.50", ["1.25", " ", "of", " ", "2.50"]),
        ("", [""]),
    ],
)
def test_names_break_behind_separators_and_before_capitals(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (80, f"back into {NAME}"),
        (40, f"back into {NAME}"),
        (24, "back into\n/layer1/layer1.0/bn1/\nBatchNormalization"),
        (17, "back into\n/layer1/layer1.0/\nbn1/Batch\nNormalization"),
        (9, "back into\n/layer1/\nlayer1.0/\nbn1/Batch\nNormaliza\ntion"),
    ],
)
def test_a_word_breaks_only_where_it_is_longer_than_a_line(width: int, expected: str) -> None:
    assert with_line_ends(f"back into {NAME}", width) == expected


@given(st.text(st.sampled_from("aB/._ 網\n"), max_size=60), st.integers(2, 30))
def test_no_character_is_lost_and_no_line_is_too_long(text: str, width: int) -> None:
    from rich.cells import cell_len

    broken = with_line_ends(text, width)
    assert "".join(broken.split()) == "".join(text.split())
    assert all(cell_len(word) <= width for word in broken.split())
    assert "".join(pieces(text)) == text


@pytest.mark.parametrize("width", [30, 60, 80, 110])
def test_a_table_breaks_no_part_of_a_name_that_fits(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    Output().show(table("", ["node", "how", "channels"], [(NAME, f"back into {NAME}", 64)], right=["channels"]))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert out.count("Normalization") == 2
    assert out.count("bn1/") == 2


def test_a_page_may_break_names_there_and_escapes_them(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    arrays = constants(w=(4, 3, 1, 1)) | norm(4)
    text = "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, var) }"
    model = model_of(text, arrays)
    for node in model.graph:
        node.name = f"/layer1/<script>/layer1.0/{node.op_type}"
    source = save_model(model, tmp_path / "model.onnx")
    write_fold_report(bnfold.optimize(source, tmp_path / "out.onnx"), source, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<code>/layer1/<wbr>&lt;script&gt;/<wbr>layer1.<wbr>0/<wbr>Conv</code>" in page
    assert ">/layer1/<wbr>&lt;script&gt;/<wbr>layer1.<wbr>0/<wbr>Batch<wbr>Normalization<" in page
