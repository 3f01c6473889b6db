# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Packages of the wheel: `trl_ext`, with the recipes' scripts and YAML files as `trl_ext.recipes`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["trl_ext", "trl_ext.*"]), "trl_ext.recipes"],
    package_dir={"trl_ext.recipes": "recipes"},
    include_package_data=False,  # what MANIFEST.in names is for the source archive
    package_data={
        "trl_ext": ["py.typed", "running/options.json"],
        "trl_ext.recipes": ["README.md", "configs/*/*.yaml"],
    },
)
