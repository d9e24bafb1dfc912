"""What pyproject.toml cannot say: a package for each folder of moebench, and the suites as one."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["moebench", "moebench.*"]), "moebench.suites"],
    package_dir={"moebench.suites": "suites"},
)
