"""What enters where the model is called: rows among the tokens, declared arguments, masks; and what leaves it without those rows."""
