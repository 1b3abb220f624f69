"""Runs on disk: begun, recorded, saved, resumed and summarized."""
