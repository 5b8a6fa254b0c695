"""What a page consists of, read back with Python's own parser."""

import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser

_VOID = {"meta", "link"}

HOSTILE = (
    "</style><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "--></title><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}{# #}",
    "&lt;b&gt; &amp;amp;",
    "url(https://example.invalid/x) } * { display: none",
    "x" * 2000,
    "\x1b[31m\x00\x07\r\n\t\u202e\u2028\ufeff",
    "\U0001f600 \ud800 слой 層",
    "#m1-n1",
    "",
)
"""Names that mean something to HTML, CSS, JavaScript, Jinja, a terminal or a careless encoder."""


class Element:
    """A tag, its attributes and what is inside: elements and texts in order."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.inside: list[Element | str] = []

    def walk(self) -> Iterator["Element"]:
        """It and every element in it."""
        yield self
        for one in self.inside:
            if isinstance(one, Element):
                yield from one.walk()

    def find(self, **attributes: str) -> "Element":
        """The one element in it that has these attributes."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        (found,) = (one for one in self.walk() if wanted.items() <= one.attributes.items())
        return found

    def tags(self, tag: str) -> list["Element"]:
        """The elements of this tag in it."""
        return [one for one in self.walk() if one.tag == tag]

    @property
    def text(self) -> str:
        """All text in it, with blanks as a browser shows them."""
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> Iterator[str]:
        for one in self.inside:
            if isinstance(one, str):
                yield one
            elif one.tag != "title":
                yield from one._texts()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        assert len(element.attributes) == len(attrs), f"<{tag}> has an attribute twice"
        self._open[-1].inside.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self._open[-1].inside.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        element = self._open.pop()
        assert element.tag == tag, f"</{tag}> ends <{element.tag}>"

    def handle_data(self, data: str) -> None:
        self._open[-1].inside.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def close(self) -> None:
        super().close()
        assert self._open == [self.root], "something is left open"


def parsed(text: str) -> Element:
    """The elements of a page; fails where tags do not close in order."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.root


def check(found: Element) -> None:
    """What holds of every page: it stands alone, and its links lead somewhere."""
    ids = [e.attributes["id"] for e in found.walk() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for element in found.walk():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            assert name not in {"src", "srcset", "action", "formaction", "ping", "background"}
            if name == "href" and element.tag != "link":
                assert value is not None
                assert value.startswith("#")
                assert value[1:] in ids
    tags = {element.tag for element in found.walk()}
    assert not tags & {
        "script",
        "iframe",
        "object",
        "embed",
        "img",
        "form",
        "base",
        "foreignobject",
    }
    (style,) = found.tags("style")
    assert not re.search(r"url\(|@import|expression|\\", "".join(map(str, style.inside)))
    (link,) = found.tags("link")
    assert link.attributes == {"rel": "icon", "href": "data:,"}
