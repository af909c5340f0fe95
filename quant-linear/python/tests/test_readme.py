"""What the README shows runs."""

import re

from conftest import ROOT


def test_the_first_example_of_the_readme():
    text = (ROOT / "quant-linear" / "python" / "README.md").read_text()
    block = re.search(r"^```python\n(.*?)^```$", text, re.M | re.S)[1]
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert (names["product"] == names["y"]).all() and names["back"].shape == names["x"].shape
