"""Text to checked method. Imports neither torch nor transformers: checking a spec takes a blink."""
