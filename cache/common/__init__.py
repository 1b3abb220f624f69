"""What every command needs whatever it does: errors, files, progress, console, devices."""
