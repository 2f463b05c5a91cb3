"""Build the site from the whole repository, so that relative links work on the site as on a git host.

MkDocs reads docs/ only. This hook replaces its files by all pages of the repository, each under its path in the
repository, and by the pictures and files that they link to. MkDocs then checks every link.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CHANGELOG.md", "data/README.md", "targets/*/README.md", "docs/**/*.md")
LINK = re.compile(r"""\]\(([^)\s#?]+)|(?:src|href)="([^"#?]+)\"""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by the pages of the repository and the files that they link to."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    pages = sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})
    linked = sorted({path for page in pages for path in _linked(page)} - set(pages))
    for path in (*pages, *linked):
        files.append(_file(path, config))
    return files


def _linked(page: Path) -> Iterator[Path]:
    """Yield the files of this repository that a page links to."""
    for groups in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / "".join(groups)).resolve()
        if path.is_relative_to(ROOT) and path.is_file():
            yield path


def _file(path: Path, config: MkDocsConfig) -> File:
    source = path.relative_to(ROOT).as_posix()
    file = File(source, src_dir=str(ROOT), dest_dir=config.site_dir, use_directory_urls=config.use_directory_urls)
    if source == "README.md":
        file.dest_uri = "readme.html"  # index.html is docs/index.md
    else:
        file.dest_uri = file.dest_uri.removeprefix("docs/")
    return file
