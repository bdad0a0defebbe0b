__import__("setuptools").setup()  # for tools that still call this file; the metadata is in pyproject.toml
