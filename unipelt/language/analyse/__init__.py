"""What is known of a checked method without running it."""
