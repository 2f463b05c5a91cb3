"""The history of nights as a static site: self-contained pages that work from a folder and fit a phone."""
