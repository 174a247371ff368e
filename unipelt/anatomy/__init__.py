"""Model to map of its sites. Knows torch modules and configurations; nothing of methods."""
