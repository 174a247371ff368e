"""Definitions resolved, inlined and checked."""
