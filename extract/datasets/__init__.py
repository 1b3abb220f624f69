"""Where images come from: folders, lists and tables, local or on the hub."""
