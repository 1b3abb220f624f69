"""Runs on disk: started, recorded, saved, resumed and summarized."""
