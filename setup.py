"""What pyproject.toml can't say: the folder ``recipes`` is a package of the wheel, beside those under ``src``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages("src"), "rankwise_recipes"],
    package_dir={"": "src", "rankwise_recipes": "recipes"},
    package_data={"rankwise": ["py.typed", "report/web/*"], "rankwise_recipes": ["**/*.yaml"]},
)
