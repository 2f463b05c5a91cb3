"""The history as a static site: pages that work from a folder, on a phone, with nothing fetched and nothing run."""
