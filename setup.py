"""What pyproject.toml can't say: ``recipes`` is a package of the wheel, and what depends on the project's address.

The address is given when a release is built, ``RANKWISE_URL=https://... python -m pip wheel .``: the metadata get their
links, and those of README.md, which an index shows away from the repository, become absolute.
"""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
URL = os.environ.get("RANKWISE_URL", "").rstrip("/")
VERSION = re.search(r'^version = "(.+)"$', (HERE / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]


def absolute(link: re.Match[str]) -> str:
    """Return a Markdown link into the repository as one to the release's files: pictures raw, the rest as pages."""
    mark, text, target = link.groups()
    return f"{mark}[{text}]({URL}/{'raw' if mark else 'blob'}/v{VERSION}/{target})"


def readme() -> str:
    """Return the README as an index shows it."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)", absolute, text) if URL else text


setup(
    packages=[*find_packages("src"), "rankwise_recipes"],
    package_dir={"": "src", "rankwise_recipes": "recipes"},
    package_data={"rankwise": ["py.typed", "report/web/*"], "rankwise_recipes": ["**/*.yaml"]},
    long_description=readme(),
    long_description_content_type="text/markdown",
    project_urls={
        "Source": URL,
        "Documentation": f"{URL}/blob/v{VERSION}/docs/index.md",
        "Changelog": f"{URL}/blob/v{VERSION}/CHANGELOG.md",
        "Issues": f"{URL}/issues",
    }
    if URL
    else {},
)
