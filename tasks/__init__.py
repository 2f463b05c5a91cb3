"""Stages: where Prefect meets the nouns."""
