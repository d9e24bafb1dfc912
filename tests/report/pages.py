"""What a browser shows of a page, for the tests of reports."""

from html.parser import HTMLParser


class PageText(HTMLParser):
    """Text of a page, and its elements, each with the names of its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.elements = "", list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(" ".join([tag, *(name for name, _ in attrs)]))

    def handle_data(self, data: str) -> None:
        self.text += data
