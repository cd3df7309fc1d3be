"""Index page: the scorecard on top, every figure with its numbers, and text that cannot break the page."""

import html.parser

from srlab import gallery, index_page

CLAIMS = """claim,statement,source,published,ours,low,high,control,verdict,notebook
speed,It is <fast> & small,Table 9,2 ms,3 ms,2.5,3.5,a plain layer,does not hold,01_lines
scale,One is enough,Abstract,+0.1 dB,+0.1 dB,0,0.2,,holds,02
other,Some of it,Figure 1,,,,,,holds only for x2,
later,Nobody knows,Figure 2,,,,,,not tested yet,05
"""
FIGURE = {"name": "rising", "caption": "A line <rises>.", "notebook": "01_lines", "seed": 2, "data_sha256": "ab" * 32}


class Text(html.parser.HTMLParser):
    """Words of a page by the tag they stand in."""

    def __init__(self, page):
        super().__init__()
        self.stack, self.words, self.ids = [], {}, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.ids += [dict(attributes).get("id")]
        if tag not in ("img", "meta", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, "tags are closed in order"

    def handle_data(self, data):
        for tag in self.stack:
            self.words.setdefault(tag, []).append(data)


def outcome(name, title, error=""):
    return gallery.Outcome(name, title, 3.2, 1, "smoke", "abc", "code cell 1" if error else "", error)


def page_of(tmp_path, claims=CLAIMS):
    scorecard = tmp_path / "scorecard.csv"
    scorecard.write_text(claims, encoding="utf-8")
    (tmp_path / "figures").mkdir(exist_ok=True)
    rows = "\n".join(f"{row},{row / 3}" for row in range(20))
    (tmp_path / "figures" / "rising.csv").write_text(f"step,height\n{rows}\n", encoding="utf-8")
    outcomes = [outcome("01_lines", "Do lines rise?"), outcome("02_fails", "Will it?", "division by zero")]
    return index_page.compose(outcomes, [FIGURE], scorecard, tmp_path)


def test_every_claim_stands_with_paper_finding_control_and_verdict(tmp_path):
    page = page_of(tmp_path)
    words = " ".join(Text(page).words["tbody"])
    for fact in ("It is <fast> & small", "2 ms", "3 ms", "a plain layer", "does not hold", "Table 9"):
        assert fact in words
    assert "1 hold, 1 hold in part or within noise, 1 do not hold, 1 not tested (of 4)" in page
    assert page.index("Scorecard") < page.index("Do lines rise?")
    assert '<a href="#01_lines">01_lines</a>' in page
    assert '<a href="#02_fails">02</a>' in page


def test_verdicts_are_told_apart_without_colour(tmp_path):
    page = page_of(tmp_path)
    signs = {sign for _, sign in index_page.VERDICTS.values()}
    assert len(signs) == len(index_page.VERDICTS)
    for kind, sign in (("bad", "✘"), ("good", "✔"), ("part", "◐"), ("open", "○")):
        assert f'<span class="{kind}"><span aria-hidden="true">{sign}</span>' in page


def test_without_a_scorecard_the_page_begins_with_the_notebooks(tmp_path):
    page = index_page.compose([], [], None, tmp_path)
    assert "Scorecard" not in page
    assert "0 figures from 0 notebooks" in page


def test_figures_show_their_first_numbers_and_where_they_came_from(tmp_path):
    text = Text(page_of(tmp_path))
    assert "figure-rising" in text.ids
    numbers = text.words["table"]
    assert numbers.index("height") < numbers.index("0.33333")
    shown = len([word for word in text.words["details"] if word.strip() in {str(n) for n in range(20)}])
    assert shown <= index_page.PREVIEW_ROWS + 2
    assert "seed 2" in " ".join(text.words["small"])


def test_a_failed_notebook_is_named_at_its_place(tmp_path):
    page = page_of(tmp_path)
    assert "1 of them failed" in page
    assert "division by zero" in page[page.index('id="02_fails"') :]


def test_the_page_asks_nobody_else_for_anything(tmp_path):
    page = page_of(tmp_path)
    assert "<script" not in page
    assert "<link" not in page
    assert "url(" not in page
    assert 'src="http' not in page


def test_the_place_of_a_picture_is_kept_free_until_it_is_loaded(tmp_path):
    from PIL import Image

    page_of(tmp_path)
    Image.new("L", (30, 20)).save(tmp_path / "figures" / "rising.png")
    assert 'width="30" height="20" loading="lazy"' in page_of(tmp_path)
