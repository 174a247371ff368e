"""Adapters of other libraries, in and out. How their folders name things is data beside the specs (``specs/peft.toml``)."""
