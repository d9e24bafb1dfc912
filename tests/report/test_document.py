"""A document shows the same text on its page as its blocks hold, whatever the text looks like."""

from fuzzing import FEW
from hypothesis import example, given
from hypothesis import strategies as st
from report.pages import PageText

from moebench.report.document import Bullets, Grid, Heading, Paragraph, Picture, page
from moebench.units import printable

MARKUP = st.text("ab1_*~`#+-=.!()[]<>&\\|:;/\"' \té×", max_size=14).filter(str.strip)


def page_of(text: str) -> PageText:
    blocks = (
        Heading(text, 1),
        Paragraph(text),
        Paragraph(text, is_small=True),
        Bullets((text, text)),
        Grid((text, text), [(text, text), (text, text)]),
        Picture("figure", text, text, b""),
    )
    html = page(text, blocks)
    return PageText(html[html.index("<body>") :])


@FEW
@given(MARKUP)
@example("__init__ and _x_ and a_b")
@example("1. a")
@example("a #")
@example("<a@b.cc> <http://a.b> &amp; &#42;")
@example("![a](b) [a][b] [a]: b")
@example("***")
def test_any_text_is_shown_as_it_is(text: str) -> None:
    shown = page_of(text)
    assert shown.elements == page_of("x").elements
    normal = printable(" ".join(text.split()))
    assert [line for line in shown.text.split("\n") if line] == [normal] * 12
