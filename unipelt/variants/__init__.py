"""Spaces of methods: enumerate, recognise, name, write; new methods from old. Knows methods by what they mean."""
