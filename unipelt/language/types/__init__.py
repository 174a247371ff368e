"""The types of expressions and rows, and the tables of words that have one."""
