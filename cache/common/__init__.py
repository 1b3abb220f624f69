"""Shared by all commands: errors, files, progress, console, options, devices."""
