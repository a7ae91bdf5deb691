"""The HTML report: what became of each op, in which parts it is told, and a page that stands alone and hides nothing."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from folding import Array, constants, model_of, norm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import graphs_of_one_scope as random_graphs

import bnfold
from bnfold.cli.main import main
from bnfold.errors import InputError
from bnfold.fold.report import (
    Collapsed,
    Direction,
    Folded,
    FoldRecord,
    FoldReport,
    Kept,
    Kind,
    Merged,
    Outcome,
    Reason,
    Refusal,
)
from bnfold.model_file import save_model
from bnfold.optimizer import OptimizeOptions, OptimizeResult
from bnfold.reporting import fold_page, glossary, parts, write_fold_report
from bnfold.reporting.changes import Box, Changes, Role, compare
from bnfold.reporting.structure import inlined_like, structure_of
from bnfold.reporting.work import multiply_adds, samples_dimensions
from bnfold.shapes import infer_shapes

ARRAYS = (
    constants(w=(4, 3, 3, 3), v=(4, 4, 3, 3), p=(4, 4, 1, 1), m=(4, 5), k=(4, 4), u=(4, 1, 1), pos=(4, 1, 1))
    | constants(sc=(5,), sh=(5,), pc=(4,), ph=(4,))
    | norm(3, "3")
    | norm(4, "4")
    | norm(5, "5")
)
HEAD = "g (float[N,3,8,8] x) => (float[N,4,6,6] y)"


def bn(source: str, size: int = 4) -> str:
    return f"BatchNormalization({source}, scale{size}, bias{size}, mean{size}, var{size})"


def model(body: str, head: str = HEAD, *, named: bool = False, functions: str = "") -> ir.Model:
    """A model in float from the text of its graph; nodes have names of their own or none."""
    arrays: dict[str, Array] = {
        name: array.astype(np.float32) for name, array in ARRAYS.items() if any(f" {name}{end}" in body for end in ",)")
    }
    made = model_of(f"{head} {{ {body} }}", arrays, functions=functions)
    if named:
        for graph in made.graphs():
            for node in graph:
                node.name = f"{node.op_type}_{node.outputs[0].name}"
    return made


def changes_of(original: ir.Model) -> tuple[Changes, ...]:
    result = bnfold.optimize(original)
    old = structure_of(inlined_like(result.model, original))
    return compare(old, structure_of(result.model), result.report)


def story(box: Box) -> str:
    """``Conv→Conv absorbing``: what stood there, what stands there, and its part."""
    stood, stands = (op.op_type if op else "" for op in (box.before, box.after))
    return f"{stood}→{stands} {'+'.join(box.roles)}".strip()


MEAN = "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>"

STORIES = [
    ("back", f"a = Conv(x, w) b = {bn('a')} y = Relu(b)", HEAD,
     ["Conv→Conv absorbing", "BatchNormalization→ folded", "Relu→Relu"]),
    ("forward", f"a = {bn('x', 3)} y = Conv(a, w)", HEAD, ["BatchNormalization→ folded", "Conv→Conv absorbing"]),
    ("kept", f"a = Conv(x, w) b = Relu(a) c = {bn('b')} y = Relu(c)", HEAD,
     ["Conv→Conv", "Relu→Relu", "BatchNormalization→BatchNormalization kept", "Relu→Relu"]),
    ("across", f"a = Conv(x, w) b = {MEAN}(a) c = {MEAN}(b) y = {bn('c')}", HEAD,
     ["Conv→Conv absorbing", "AveragePool→AveragePool crossed", "AveragePool→AveragePool crossed", "BatchNormalization→ folded"]),
    ("chain", "a = Conv(x, w) b = Mul(a, u) y = Add(b, pos)", HEAD,
     ["Conv→Conv absorbing", "Mul→ folded", "Add→ folded"]),
    ("one after the other", f"a = Conv(x, w) b = {bn('a')} c = Identity(b) y = {bn('c')}", HEAD,
     ["Conv→Conv absorbing", "BatchNormalization→ folded", "Identity→ gone", "BatchNormalization→ folded"]),
    ("collapsed", f"a = Conv(x, w) b = Relu(a) c = {bn('b')} d = Mul(c, u) e = Add(d, pos) y = Relu(e)", HEAD,
     ["Conv→Conv", "Relu→Relu", "BatchNormalization→ collapsed", "Mul→ collapsed",
      "Add→BatchNormalization collapsed+made", "Relu→Relu"]),
    ("a bias that makes a Gemm", f"a = MatMul(x, m) b = {bn('a', 5)} y = Relu(b)", "g (float[N,4] x) => (float[N,5] y)",
     ["MatMul→Gemm absorbing", "BatchNormalization→ folded", "Relu→Relu"]),
    ("remainder", "a = MatMul(x, m) c = Mul(a, sc) b = Add(c, sh) y = Relu(b)", "g (float[N,3,4] x) => (float[N,3,5] y)",
     ["MatMul→MatMul absorbing", "Mul→ folded", "Add→Add folded+made", "Relu→Relu"]),
    ("remainder behind", "c = Mul(x, pc) a = Add(c, ph) b = MatMul(a, k) y = Relu(b)", "g (float[N,3,4] x) => (float[N,3,4] y)",
     ["Mul→ folded", "Add→ folded", "MatMul→MatMul absorbing", "→Add made", "Relu→Relu"]),
    ("merged", f"a = Conv<pads=[1,1,1,1]>(x, v) b = {bn('a')} c = Conv(x, p) d = {bn('c')} e = {bn('x')} f = Add(b, d) "
     "h = Add(f, e) y = Relu(h)", "g (float[N,4,8,8] x) => (float[N,4,8,8] y)",
     ["Conv→Conv merged+absorbing", "BatchNormalization→ folded", "Conv→ merged", "BatchNormalization→ merged",
      "BatchNormalization→ merged", "Add→ gone", "Add→ gone", "Relu→Relu"]),
]  # fmt: skip


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
@pytest.mark.parametrize(("body", "head", "expected"), [row[1:] for row in STORIES], ids=[row[0] for row in STORIES])
def test_each_op_is_told_its_part(body: str, head: str, expected: list[str], named: bool) -> None:
    (main_graph,) = changes_of(model(body, head, named=named))
    assert [story(box) for box in main_graph.boxes if not box.is_end] == expected


def check_lines(original: ir.Model) -> None:
    """Read off the drawing, who reads whom is what the folded model says; in between are only places of the gone."""
    result = bnfold.optimize(original)
    old, new = structure_of(original), structure_of(result.model)
    main_graph, *_ = compare(old, new, result.report)
    folded = new.scopes[0]
    producer = {name: op for op in folded.ops for name in op.outputs if not op.hidden}
    expected = {(producer[name], op) for op in folded.ops if not op.hidden for name in op.inputs if name in producer}
    drawn = {(main_graph.boxes[path[0]].after, main_graph.boxes[path[-1]].after) for path in main_graph.after}
    assert drawn == expected
    assert all(main_graph.boxes[place].after is None for path in main_graph.after for place in path[1:-1])
    own = {box.records[0] for box in main_graph.boxes if box.has_fate}
    assert own == set(range(len(result.report.records))), "each record has its box"
    assert fold_page.graphs([main_graph], result.report)


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
@pytest.mark.parametrize(("body", "head"), [row[1:3] for row in STORIES], ids=[row[0] for row in STORIES])
def test_lines_after_lead_where_the_data_go(body: str, head: str, named: bool) -> None:
    check_lines(model(body, head, named=named))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.booleans())
def test_lines_after_lead_where_the_data_go_in_any_graph(original: ir.Model, named: bool) -> None:
    if not named:
        for node in original.graph:
            node.name = None
    check_lines(original)


def test_constants_and_shapes_are_not_drawn() -> None:
    body = (
        "z = Constant<value = float {0}>() like = CastLike(z, x) s = Constant<value_ints = [4]>() bias = Expand(like, s) "
        f"a = Conv(x, w, bias) b = {bn('a')} n = Shape(b) y = Reshape(b, n)"
    )
    (main_graph,) = changes_of(model(body))
    assert [box.op.op_type for box in main_graph.boxes] == ["input", "Conv", "BatchNormalization", "Reshape", "output"]


BRANCHES = f"""
c = Conv(x, w) y = If(cond) <
  then_branch = yes () => (float[N,4,6,6] t2) {{ t = Conv<pads=[1,1,1,1]>(c, v) t2 = {bn("t")} }},
  else_branch = no () => (float[N,4,6,6] e) {{ e = Relu(c) }}>
"""
WITH_CONDITION = "g (float[N,3,8,8] x, bool cond) => (float[N,4,6,6] y)"


def test_bodies_are_graphs_of_their_own() -> None:
    main_graph, yes, no = changes_of(model(BRANCHES, WITH_CONDITION))
    assert main_graph.untouched
    assert no.untouched
    assert (yes.owner, yes.attribute) == ("y", "then_branch")
    assert [story(box) for box in yes.boxes] == [
        "outer value→outer value", "Conv→Conv absorbing", "BatchNormalization→ folded", "output→output",
    ]  # fmt: skip
    reads = {(main_graph.boxes[a].op.op_type, main_graph.boxes[b].op.op_type) for a, b in main_graph.before}
    assert ("Conv", "If") in reads, "what a body reads, its owner reads"


def test_functions_are_compared_inlined() -> None:
    functions = (
        '<domain: "local", opset_import: ["": 17]> block (x, w, scale4, bias4, mean4, var4) => (y) '
        f"{{ c = Conv(x, w) y = {bn('c')} }}"
    )
    (main_graph,) = changes_of(model("y = local.block(x, w, scale4, bias4, mean4, var4)", functions=functions))
    assert [story(box) for box in main_graph.boxes if not box.is_end] == [
        "Conv→Conv absorbing", "BatchNormalization→ folded",
    ]  # fmt: skip


def blocks(count: int, pattern: str = "residual") -> ir.Model:
    """Many blocks in a row: residual ones, or plain ones."""
    lines, last = ["v0 = Conv(x, w)"], "v0"
    for i in range(count):
        lines.append(f"a{i} = Conv<pads=[1,1,1,1]>({last}, v) b{i} = {bn(f'a{i}')} r{i} = Relu(b{i})")
        if pattern == "residual":
            lines.append(f"s{i} = Add(r{i}, {last})")
        last = f"s{i}" if pattern == "residual" else f"r{i}"
    return model(" ".join([*lines, f"y = Relu({last})"]))


@pytest.mark.parametrize("pattern", ["residual", "plain"])
def test_large_graph_is_told_in_a_few_regions(pattern: str) -> None:
    (main_graph,) = changes_of(blocks(100, pattern))
    cut = parts.cut(main_graph)
    assert [box for part in cut for box in part.boxes] == list(main_graph.boxes), "each box once, in order"
    assert max(len(part.boxes) for part in cut) <= parts.LARGE
    assert len(parts.runs(cut)) <= 4


def test_small_graph_is_drawn_whole() -> None:
    (main_graph,) = changes_of(blocks(5))
    (part,) = parts.cut(main_graph)
    assert part.nodes == main_graph.boxes
    assert (part.before, part.after) == (main_graph.before, main_graph.after)


def test_graph_that_nowhere_narrows_is_cut_too() -> None:
    count = 300
    body = f"a = {bn('x', 3)} " + " ".join(f"r{i} = Relu(a)" for i in range(count))
    joined = ",".join(f"r{i}" for i in range(count))
    wide = model(f"{body} y = Concat<axis=1>({joined})", f"g (float[N,3,8,8] x) => (float[N,{3 * count},8,8] y)")
    (main_graph,) = changes_of(wide)
    cut = parts.cut(main_graph)
    assert max(len(part.boxes) for part in cut) <= parts.LARGE
    regions = fold_page.graphs([main_graph], bnfold.optimize(wide).report)[0].regions
    assert [region.untouched for region in regions] == [False, True]
    assert sum(region.nodes for region in regions) == count + 2


def test_part_is_called_after_what_its_weights_share() -> None:
    original = model(f"a = Conv(x, w) b = {bn('a')} y = Relu(b)")
    for name in [*original.graph.initializers]:
        value = original.graph.initializers.pop(name)
        value.name = f"layer1.0.{name}"
        original.graph.register_initializer(value)
    (part,) = parts.cut(changes_of(original)[0])
    assert part.title == "layer1.0"


WORK = [
    ("y = Conv(x, w)", HEAD, 4 * 3 * 9 * 36),
    ("y = Conv(x, w)", "g (float[2,3,8,8] x) => (float[2,4,6,6] y)", 2 * 4 * 3 * 9 * 36),
    ("y = Conv(x, w)", "g (float[N,3,H,W] x) => (float[N,4,I,J] y)", None),
    ("y = ConvTranspose(x, v)", "g (float[N,4,5,5] x) => (float[N,4,7,7] y)", 4 * 4 * 9 * 25),
    ("y = Gemm(x, m)", "g (float[N,4] x) => (float[N,5] y)", 20),
    ("y = Gemm<transA=1>(x, m)", "g (float[4,N] x) => (float[N,5] y)", None),  # which N is the batch cannot be told
    ("y = MatMul(x, m)", "g (float[N,7,4] x) => (float[N,7,5] y)", 7 * 20),
    ("y = MatMul(x, x)", "g (float[N,3,4,4] x) => (float[N,3,4,4] y)", 3 * 64),
    (f"y = {bn('x')}", "g (float[N,4,5,5] x) => (float[N,4,5,5] y)", 100),
    ("y = Relu(x)", "g (float[N,4] x) => (float[N,4] y)", 0),
]


@pytest.mark.parametrize(("body", "head", "expected"), WORK)
def test_multiply_adds_of_one_sample(body: str, head: str, expected: int | None) -> None:
    made = model(body, head)
    (node,) = made.graph
    assert multiply_adds(node, infer_shapes(made), samples_dimensions(made)) == expected


def record(outcome: Outcome, kind: Kind = Kind.BATCH_NORM) -> FoldRecord:
    return FoldRecord("n", "BatchNormalization", "y", kind, 4, outcome, ort_folds=False)


FOLDED = record(Folded(Direction.BACKWARD, (), ("c",)))
MERGED = record(Merged("c"))
REFUSAL = Refusal(Reason.PADDING, "it pads")
KEPT = record(Kept(REFUSAL))
COLLAPSED = record(Collapsed(("a", "b"), "BatchNormalization", REFUSAL, REFUSAL))
AFFINE = record(Folded(Direction.BACKWARD, (), ("c",)), Kind.AFFINE)


@pytest.mark.parametrize(
    ("records", "left", "expected"),
    [
        ((), 0, "This model has no batch norm."),
        ((AFFINE,), 0, "This model has no batch norm, and 1 other affine went."),
        ((FOLDED,), 0, "The one batch norm was folded into the ops around it."),
        ((FOLDED, FOLDED), 0, "All 2 batch norms were folded into the ops around them; none are left."),
        ((FOLDED, KEPT), 1, "1 of 2 batch norms was folded into the ops around it; 1 is left."),
        ((FOLDED, MERGED, MERGED, KEPT, KEPT), 2,
         "1 of 5 batch norms was folded into the ops around it, 2 were merged with what stands beside them; 2 are left."),
        ((MERGED, MERGED), 0, "All 2 batch norms were merged with what stands beside them; none are left."),
        ((FOLDED, COLLAPSED, KEPT), 2,
         "1 of 3 batch norms was folded into the ops around it; 2 are left, 1 of them as one op with its neighbours."),
        ((FOLDED, COLLAPSED), 0,
         "1 of 2 batch norms was folded into the ops around it, 1 was turned into a simpler op; none are left."),
    ],
)  # fmt: skip
def test_verdict_counts_every_batch_norm(records: tuple[FoldRecord, ...], left: int, expected: str) -> None:
    report = FoldReport(records, nodes_before=9, nodes_after=7, batch_norms_after=left)
    assert fold_page.verdict(report) == expected


@pytest.mark.parametrize(("count", "expected"), [(1, "The one batch norm could not be folded."), (3, "None of 3 batch norms could be folded.")])  # fmt: skip
def test_verdict_where_nothing_could_be_done(count: int, expected: str) -> None:
    assert fold_page.verdict(FoldReport((KEPT,) * count, 9, 9, count)) == expected


def test_every_reason_and_every_role_is_explained() -> None:
    assert set(glossary.REASONS) == set(Reason)
    assert set(glossary.ROLES) == set(Role)


class Page(HTMLParser):
    """Reads a page as strictly as it needs: every element is closed, in order."""

    VOID = frozenset({"meta", "input", "br", "link", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.links: set[str] = set()
        self.tags: Counter[str] = Counter()
        self.texts: list[str] = []
        self.goes_on = False
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.goes_on = tag == "wbr"  # where a word may break, it is one word still
        values = dict(attrs)
        if identity := values.get("id"):
            self.ids[identity] += 1
        if (link := values.get("href")) is not None:
            self.links.add(link)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts[-1:] = [self.texts[-1] + data] if self.goes_on else [*self.texts[-1:], data]
        self.goes_on = False


def page_of(original: ir.Model, folder: Path, **options: object) -> tuple[str, Page]:
    source = save_model(original, folder / "model.onnx")
    result = bnfold.optimize(source, folder / "out.onnx", OptimizeOptions(**options))  # type: ignore[arg-type]
    write_fold_report(result, source, folder / "report.html")
    text = (folder / "report.html").read_text()
    return text, Page(text)


PAGES = [(row[1], row[2]) for row in STORIES] + [
    (BRANCHES, WITH_CONDITION),
    ("y = Relu(x)", "g (float[N,4] x) => (float[N,4] y)"),
]


@pytest.mark.parametrize(("body", "head"), PAGES)
def test_page_is_well_formed_and_every_link_leads_somewhere(body: str, head: str, tmp_path: Path) -> None:
    text, page = page_of(model(body, head), tmp_path)
    assert max(page.ids.values()) == 1
    assert all(link[0] == "#" and link[1:] in page.ids for link in page.links)
    assert "src=" not in text
    assert "https://" not in text
    assert "{{" not in text


def test_each_record_has_its_row_and_each_fate_a_symbol(tmp_path: Path) -> None:
    text, page = page_of(model(STORIES[6][1]), tmp_path)
    assert {"r0", "i-folded", "i-merged", "i-collapsed", "i-kept"} <= set(page.ids)
    assert {"#r0", "#i-collapsed"} <= page.links
    assert any(link.startswith("#n0-") for link in page.links), "from the table to the drawing"
    assert "not forward: Relu does not commute with a shift" in " ".join(page.texts)
    assert "became one BatchNormalization, which stays" in text


def test_large_network_stays_a_small_page_with_every_batch_norm(tmp_path: Path) -> None:
    text, page = page_of(blocks(170), tmp_path)  # 681 nodes
    assert len(text) < 3_000_000
    assert {f"r{i}" for i in range(170)} <= set(page.ids)
    assert page.tags["details"] < 20 + 170
    assert all(link[1:] in page.ids for link in page.links)


def test_endless_table_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_page, "TOLD", 2)
    lines = [f"r = Relu(x) k = {bn('r', 3)} l = Relu(k) v0 = Conv(l, w)"]
    lines += [f"v{i + 1} = {bn(f'v{i}')}" if i % 2 == 0 else f"v{i + 1} = Conv(v{i}, p)" for i in range(6)]
    text, page = page_of(model(" ".join([*lines, "y = Relu(v6)"])), tmp_path)
    assert {identity for identity in page.ids if identity[1:].isdigit()} == {"r0", "r1"}, "what stays comes first"
    assert "2 more that were folded" in text


def test_names_are_text_wherever_they_come_from(tmp_path: Path) -> None:
    evil = "<script>alert('&quot;\"')</script>"
    original = model(BRANCHES, WITH_CONDITION)
    for graph in original.graphs():
        graph.name = evil
        for node in graph:
            node.name = evil + node.op_type
            for value in node.outputs:
                if not value.is_graph_output():
                    value.name = evil + str(value.name)
    for value in [*original.graph.inputs, *original.graph.outputs]:
        value.name = evil + str(value.name)
    text, page = page_of(original, tmp_path)
    assert page.tags["script"] == 1, "the page's own"
    assert "<script>" not in text
    assert any(evil in words for words in page.texts)


def test_long_lists_of_names_are_shortened_and_all_there(tmp_path: Path) -> None:
    lines = [f"c{i} = Conv(x, w)" for i in range(12)]
    joined = ",".join(f"c{i}" for i in range(12))
    body = " ".join([*lines, f"d = Concat<axis=3>({joined})", f"y = {bn('d')}"])
    text, _ = page_of(model(body, "g (float[N,3,8,8] x) => (float[N,4,6,72] y)"), tmp_path)
    assert "and 8 more" in text
    assert all(f"<code>c{i}</code>" in text or f'<code title="c{i}">c{i}</code>' in text for i in range(12))


def test_refused_merge_is_told_with_its_reason(tmp_path: Path) -> None:
    body = "a = Conv(x, w) y = Conv(a, v)"  # one kernel of 5×5 would do more
    text, page = page_of(model(body, "g (float[N,3,8,8] x) => (float[N,4,4,4] y)"), tmp_path)
    result = bnfold.optimize(tmp_path / "model.onnx")
    refusals = [merge.refusal.detail for merge in result.report.merges if merge.refusal is not None]
    assert refusals, "the row must hold a merge that is refused"
    words = " ".join(page.texts)
    assert "Ops that became one" in text
    assert all(refusal[1:] in words for refusal in refusals)


def test_model_that_was_replaced_is_shown_as_it_was(tmp_path: Path) -> None:
    path = save_model(model(STORIES[0][1]), tmp_path / "model.onnx")
    report = tmp_path / "report.html"
    assert main(["optimize", str(path), str(path), "--in-place", "--no-verify", "--report", str(report), "-q"]) == 0
    page = Page(report.read_text())
    assert page.texts.count("BatchNorm") == 2, "in the drawing before, and in the table"


def test_replaced_model_cannot_be_guessed(tmp_path: Path) -> None:
    path = save_model(model(STORIES[0][1]), tmp_path / "model.onnx")
    result = bnfold.optimize(path, path, OptimizeOptions(in_place=True))
    with pytest.raises(InputError, match="holds the result by now"):
        write_fold_report(result, path, tmp_path / "report.html")


def test_page_says_what_was_not_proven_and_not_written(tmp_path: Path) -> None:
    path = save_model(model(STORIES[0][1]), tmp_path / "model.onnx")
    folded = bnfold.optimize(path)
    write_fold_report(OptimizeResult(folded.model, folded.report), path, tmp_path / "report.html")
    words = " ".join(" ".join(Page((tmp_path / "report.html").read_text()).texts).split())
    assert "Not proven. The result was not compared with the original. Nothing was written." in words


def test_page_needs_neither_torch_nor_onnxruntime_nor_matplotlib(tmp_path: Path) -> None:
    path = save_model(model(STORIES[0][1]), tmp_path / "model.onnx")
    program = (
        "import sys, bnfold; from pathlib import Path; from bnfold.reporting import write_fold_report;"
        f"write_fold_report(bnfold.optimize({str(path)!r}), Path({str(path)!r}), Path({str(tmp_path / 'r.html')!r}));"
        "heavy = {'torch', 'onnxruntime', 'matplotlib'} & set(sys.modules); sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.html").exists()
