"""Datasets: folders, lists and tables of images, local or on the hub."""
