"""What lives in a model: edits as registered modules on public seams; attach, switch, merge, save, load."""
