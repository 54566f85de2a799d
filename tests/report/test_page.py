"""The page itself: data that stays data, and a policy that allows nothing but what is inside."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path

import pytest

from rankwise.report.page import SCRIPTS, WEB, embedded, render_page, save_page

HOSTILE = ("</script>", "<!--<script>", "a & b", "\u2028", "\u2029", '"\\', "]]>", "%%STYLE%%", "é")
WAYS_IN = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "@import")


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_comes_back_and_none_can_end_the_element(text: str) -> None:
    made = embedded({text: [text]})
    assert json.loads(made) == {text: [text]}
    assert not set("<>&\u2028\u2029") & set(made)


def test_numbers_that_json_does_not_know_are_null() -> None:
    assert json.loads(embedded({"a": (math.nan, -math.inf, 1.5), "b": {"c": math.inf}})) == {
        "a": [None, None, 1.5],
        "b": {"c": None},
    }


def test_the_policy_allows_this_script_and_this_style_only() -> None:
    page = render_page({"x": 1}, title="a <b> & c")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    for tag in ("script", "style"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    assert "<title>a &lt;b&gt; &amp; c</title>" in page


def test_nothing_is_asked_of_a_network_and_nothing_is_parsed_as_html() -> None:
    sources = {name: (WEB / name).read_text(encoding="utf-8") for name in (*SCRIPTS, "page.css", "page.html")}
    for name, text in sources.items():
        addresses = set(re.findall(r"https?://[^\s\"']+", text)) - {"http://www.w3.org/2000/svg"}
        assert addresses == set(), name
        assert [way for way in WAYS_IN if way in text] == [], name


def test_every_script_is_in_the_page() -> None:
    assert sorted(SCRIPTS) == sorted(each.name for each in WEB.iterdir() if each.name.endswith(".js"))


def test_a_page_ends_in_html(tmp_path: Path) -> None:
    assert save_page({}, tmp_path / "deep" / "a.html", title="t").is_file()
    with pytest.raises(ValueError, match=r"must end in \.html"):
        save_page({}, tmp_path / "pictures", title="t")
    assert not (tmp_path / "pictures").exists()
