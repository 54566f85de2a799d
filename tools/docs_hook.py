"""Links of the documentation that leave its folder: the file is copied into the site, a folder is only named.

The pages are read in the repository too, where ``../recipes`` and ``../results/x.json`` lead to the real thing. On the
site a file lies below ``repository/``; a folder has no page there. One that is not in the repository is an error.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

OUTSIDE = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<to>(?:\.\./)+[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page that leave the folder of the documentation."""
    root, docs = Path(config["config_file_path"]).parent, Path(config["docs_dir"])
    folder = (docs / page.file.src_uri).parent

    def replaced(match: re.Match[str]) -> str:
        target = Path(posixpath.normpath((folder / match["to"]).as_posix()))
        if target.is_relative_to(docs):
            return match[0]
        if not target.is_relative_to(root) or not target.exists():
            raise PluginError(f"{page.file.src_uri}: {match['to']} is not in the repository")
        if target.is_dir():
            return f"{match['text']} (in the repository)"
        inside = target.relative_to(root).as_posix()
        shown = f"repository/{inside}{'.txt' if target.suffix in ('.md', '.py', '.yaml') else ''}"
        if files.get_file_from_path(shown) is None:
            files.append(File.generated(config, shown, abs_src_path=str(target)))
        return f"[{match['text']}]({posixpath.relpath(shown, posixpath.dirname(page.file.src_uri) or '.')})"

    return OUTSIDE.sub(replaced, markdown)
