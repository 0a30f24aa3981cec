"""Links of a built site that lead nowhere."""

import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The anchors of one page, and the addresses of what it links to or loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors.update(value for key in ("id", "name") if (value := values.get(key)))
        if tag in ("a", "link") and (href := values.get("href")):
            (self.targets if tag == "a" else self.loaded).append(href)
        if source := values.get("src"):
            self.loaded.append(source)


def broken_links(site: Path, settings: Path) -> list[str]:
    """Every link, image, script and style of the pages in `site` that is not there, a sentence each.

    Also: pages of the navigation in `settings` that do not exist, pages that it lacks, and whatever a page would load
    from the network.
    """
    pages = {path.resolve(): _Page(path) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: {url} is loaded from the network" for url in page.loaded if urlsplit(url).netloc]
        for url in (*page.targets, *page.loaded):
            if problem := _problem(path, url, pages, site.resolve()):
                found.append(f"{name}: {url}: {problem}")
    return [*found, *_of_navigation(site, settings)]


def _problem(path: Path, url: str, pages: dict[Path, _Page], site: Path) -> str | None:
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return None
    # The page for addresses that do not exist is served from any of them, so that its links begin at the top.
    beside = site if path.name == "404.html" else path.parent
    target = path if not parts.path else (beside / unquote(parts.path).lstrip("/")).resolve()
    if target.is_dir():
        target = target / "index.html"
    if not target.is_file():
        return "there is no such file"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
        return "there is no such heading"
    return None


def _of_navigation(site: Path, settings: Path) -> Iterator[str]:
    listed = set(_listed(tomllib.loads(settings.read_text(encoding="utf-8"))["project"]["nav"]))
    there = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")} - {"404.md"}
    yield from (f"{settings.name}: nav: there is no page {name}" for name in sorted(listed - there))
    yield from (f"{settings.name}: nav: the page {name} is missing" for name in sorted(there - listed))


def _listed(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from _listed(inner)
